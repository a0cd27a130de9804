"""Quantising by GPTQ: where the calibration tokens come from.

`convert/` has the method and knows neither tokenizers nor runners; this module brings them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spqt_ti.api import open_quantized
from spqt_ti.container import Container, check_destination
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.gptq_model import DAMPING, GptqQuantizer
from spqt_ti.convert.quantize import check_supported, label_of, open_source, quantize_checkpoint
from spqt_ti.convert.rotate import rotated
from spqt_ti.errors import QuantizationError
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.windows import sampled_windows, text_windows
from spqt_ti.model.runner import Llama
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.texts import paragraph_hashes, sha256

__all__ = ["DEFAULT_TOKENS", "WINDOW", "quantize_gptq"]

DEFAULT_TOKENS = 16384
WINDOW = 512  # tokens


def quantize_gptq(
    source: str | Path,
    destination: str | Path,
    *,
    scheme: str = "q4_k",
    layout: str = "zigzag",
    text: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    damping: float = DAMPING,
    rotate: Iterable[str] = (),
    progress: bool = True,
    overwrite: bool = False,
) -> Container:
    """As `convert.quantize`, with the layers' matrices quantised by GPTQ on `tokens` calibration tokens.

    Half of them come from `text` (as many as it has), the others are drawn from the model itself, rounded to the
    nearest; without a text all are. The container records method, hashes of the text, tokens, damping and seed.
    `rotate`: components that are rotated before, as for `convert.quantize`.

    Raises QuantizationError for fewer tokens than a window, a layout other than zigzag and inputs that are not finite;
    else as `convert.quantize`.
    """
    storage = parse_storage(scheme, layout)
    check_destination(destination, overwrite)
    checkpoint = open_source(source, progress)
    check_supported(checkpoint.config)
    checkpoint, records = rotated(checkpoint, rotate, seed)
    length = min(WINDOW, checkpoint.config.max_position_embeddings)
    if tokens < length:
        raise QuantizationError(f"GPTQ needs {length} calibration tokens or more, not {tokens}")
    windows = _windows(checkpoint, text, tokens // length, length, seed)
    quantizer = GptqQuantizer(checkpoint, windows, damping)
    record = {**quantizer.record(), "seed": seed, **_text_record(text)}
    return quantize_checkpoint(
        checkpoint, destination, storage, label_of(source), transformations=[*records, record], quantizer=quantizer,
        progress=progress, overwrite=overwrite,
    )  # fmt: skip


def _windows(checkpoint: Checkpoint, text: str | None, count: int, length: int, seed: int) -> list[list[int]]:
    tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config, checkpoint.chat_template)
    bos = checkpoint.config.bos_token_id
    found = [] if text is None else text_windows(tokenizer.encode(text), length, -(-count // 2), bos)
    if len(found) < count:
        llama = Llama(open_quantized(checkpoint.source, "cpu"), backend_name="cpu", context=length)
        found += sampled_windows(llama, length, count - len(found), bos, seed)
    return found


def _text_record(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    return {"text_sha256": sha256(text), "paragraphs": paragraph_hashes(text)}
