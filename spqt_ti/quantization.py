"""Quantising with calibration, by GPTQ or after pruning: where the tokens come from.

`convert/` has the methods and knows neither tokenizers nor runners; this module brings them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spqt_ti import __version__
from spqt_ti.api import open_quantized
from spqt_ti.container import Container, Source, check_destination
from spqt_ti.container.matrices import Storage
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.finished_layers import FinishedLayers, folder_beside
from spqt_ti.convert.gptq_memory import gptq_bytes
from spqt_ti.convert.gptq_model import DAMPING, GptqQuantizer, MatrixQuantizer, round_to_nearest
from spqt_ti.convert.gptq_rows import check_scheme
from spqt_ti.convert.identity import files_of
from spqt_ti.convert.plan import PruningPlan
from spqt_ti.convert.prune import Pruner, check_request, pruned_checkpoint, pruned_config
from spqt_ti.convert.quantize import check_supported, label_of, open_source, quantize_checkpoint
from spqt_ti.convert.rotate import Rotation, rotated
from spqt_ti.convert.stored_windows import SEED, stored_windows
from spqt_ti.errors import QuantizationError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.windows import sampled_windows, text_windows
from spqt_ti.memory import available_memory
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.texts import paragraph_hashes, sha256

__all__ = ["DEFAULT_TOKENS", "METHODS", "WINDOW", "has_windows", "quantize_calibrated"]

METHODS = ("rtn", "gptq")
DEFAULT_TOKENS = 16384
WINDOW = 512  # tokens


def quantize_calibrated(
    source: str | Path,
    destination: str | Path,
    *,
    method: str = "gptq",
    scheme: str = "q4_k",
    layout: str = "zigzag",
    text: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    damping: float = DAMPING,
    plan: PruningPlan | float | None = None,
    pruning: str = "compensated",
    rotate: Iterable[str] = (),
    progress: bool = True,
    overwrite: bool = False,
) -> Container:
    """As `convert.quantize`, with what `tokens` calibration tokens say of the source.

    `method`: "gptq" for the layers' matrices, or "rtn" (to the nearest). `plan`: rates at which layers are pruned
    before, or one for all of them, in the way of `pruning` (one of `prune.MODES`). `rotate`: as for `convert.quantize`,
    after pruning.

    Half of the tokens come from `text` (as many as it has), the others are drawn from the model itself, rounded to the
    nearest; without a text all are. Those of a known model come with the package. The container records what was done,
    hashes of the texts, tokens and seed.

    Layers that GPTQ has finished are kept in a hidden folder beside the destination until the container is complete.
    The same call goes on after the last of them, and makes the same bytes.

    Raises QuantizationError for an unknown method, fewer tokens than a window, GPTQ in row layout of a scheme other
    than Q4_K and Q5_K, single weights pruned before GPTQ, and inputs that are not finite, AllocationError for a plan of
    another model; else as `convert.quantize`.
    """
    storage = parse_storage(scheme, layout)
    if method not in METHODS:
        raise QuantizationError(f"unknown method {method!r}; there are: {', '.join(METHODS)}")
    check_destination(destination, overwrite)
    checkpoint = open_source(source, progress)
    check_supported(checkpoint.config)
    label = label_of(source)
    if isinstance(plan, int | float):
        plan = PruningPlan((plan,) * checkpoint.config.num_hidden_layers)
    if plan is not None:
        plan.check(Source(label, files_of(checkpoint.source)).sha256, checkpoint.config.num_hidden_layers)
        _check_pruning(plan, checkpoint.config.num_hidden_layers, pruning, method)
    config = pruned_config(checkpoint.config, plan.rates, pruning) if plan else checkpoint.config
    Rotation.of(config, rotate, seed)  # what cannot be done is said before any work
    length = min(WINDOW, checkpoint.config.max_position_embeddings)
    if tokens < length:
        raise QuantizationError(f"{length} calibration tokens or more are needed, not {tokens}")
    said = {"seed": seed, **_text_record(text)}
    finished = None
    if method == "gptq":
        _check_layouts(storage)
        _check_memory(checkpoint.config, tokens, length)
        finished = FinishedLayers(
            folder_beside(destination),
            {
                "source": files_of(checkpoint.source), "rates": plan.rates if plan else None, "pruning": pruning,
                "rotate": sorted(rotate), "scheme": scheme, "layout": layout, "tokens": tokens, "window": length,
                "damping": damping, "version": __version__, **said,
            },
        )  # fmt: skip
    windows = finished.windows() if finished else None
    if windows is None or not all(0 <= token < checkpoint.config.vocab_size for one in windows for token in one):
        windows = _windows(checkpoint, text, tokens // length, length, seed)
    records: list[dict[str, Any]] = []
    if plan is not None:
        pruner = Pruner(checkpoint, plan.rates, windows, pruning)
        checkpoint = pruned_checkpoint(checkpoint, pruner)
        records += [*plan.records(), {**pruner.record(), **said}]
    checkpoint, rotations = rotated(checkpoint, rotate, seed)
    records += rotations
    if finished:  # nothing is written before everything has been checked
        finished.begin(windows)
    quantizer: MatrixQuantizer = round_to_nearest
    if method == "gptq":
        quantizer = by_gptq = GptqQuantizer(checkpoint, windows, damping, finished)
        records.append({**by_gptq.record(), **said})
    container = quantize_checkpoint(
        checkpoint, destination, storage, label, transformations=records, quantizer=quantizer, progress=progress,
        overwrite=overwrite,
    )  # fmt: skip
    if finished:
        finished.remove()
    return container


def _check_memory(config: ModelConfig, tokens: int, window: int) -> None:
    """QuantizationError where GPTQ would take more memory than there is; before any work is done."""
    needed, free = gptq_bytes(config, tokens, window), available_memory()
    if free is not None and free < needed:
        raise QuantizationError(
            f"GPTQ on {tokens} tokens takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            "take fewer tokens, close other programs or take a machine with more"
        )


def _check_pruning(plan: PruningPlan, layers: int, mode: str, method: str) -> None:
    """Raise what `prune.check_request` does, and QuantizationError for zeros that would not stay; before any work."""
    check_request(plan.rates, layers, mode)
    if mode == "weights" and method == "gptq":
        raise QuantizationError(
            "GPTQ changes the weights that pruning has made zero; quantise with --method rtn, or prune whole channels"
        )


def _check_layouts(storage: Mapping[str, Storage]) -> None:
    """QuantizationError unless GPTQ can quantise the layers' matrices as stored; before any work is done."""
    for site in SITES:
        if storage[site].layout == "row":
            check_scheme(storage[site].scheme)


def has_windows(source: str | Path) -> bool:
    """Whether calibration windows of a source come with the package, so that GPTQ has nothing to draw."""
    return bool(_stored(open_source(source, progress=False)))


def _stored(checkpoint: Checkpoint) -> list[list[int]]:
    return stored_windows(Source("", files_of(checkpoint.source)).sha256)


def _windows(checkpoint: Checkpoint, text: str | None, count: int, length: int, seed: int) -> list[list[int]]:
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config, checkpoint.chat_template)
    bos = checkpoint.config.bos_token_id
    found = [] if text is None else text_windows(tokenizer.encode(text), length, -(-count // 2), bos)
    needed = count - len(found)
    stored = _stored(checkpoint) if seed == SEED else []
    if len(stored) >= needed and all(len(window) == length for window in stored):
        return found + stored[:needed]
    llama = Llama(open_quantized(checkpoint.source, "cpu"), backend_name="cpu", context=length)
    return found + sampled_windows(llama, length, needed, bos, seed)


def _text_record(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    return {"text_sha256": sha256(text), "paragraphs": paragraph_hashes(text)}
