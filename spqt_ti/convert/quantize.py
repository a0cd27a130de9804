"""A source model into a container, tensor by tensor: memory holds a few times the largest tensor, never the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spqt_ti.container.container import (
    MANIFEST,
    SCHEMES,
    Container,
    ContainerWriter,
    MatrixInfo,
    check_destination,
    stacked_matrices,
)
from spqt_ti.errors import CheckpointError, QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q8_0
from spqt_ti.kernels.pack.q4_k import quantize_q4_k
from spqt_ti.model.config import ModelConfig
from spqt_ti.progress import progress as show_progress
from spqt_ti.sources import registry
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.sources.open import open_checkpoint

__all__ = ["check_supported", "quantize"]

_QUANTIZERS = {"q4_k": quantize_q4_k}
_CHUNK_VALUES = 1 << 18  # of an embedding at a time: temporaries stay in the cache

F32Array = npt.NDArray[np.float32]


def quantize(
    source: str | Path,
    destination: str | Path,
    layout: str = "zigzag",
    scheme: str = "q4_k",
    progress: bool = True,
    overwrite: bool = False,
) -> Container:
    """Quantise a model (Hugging Face directory, GGUF file, known name or hub id) into a new directory.

    Matrices of the blocks become `scheme` in `layout`; embedding and head Q8_0 (a tied one is stored once); norms and
    biases stay f32. `progress` shows a bar on stderr if that is a terminal; `overwrite` replaces a container.

    The directory appears when it is complete, or not at all. Raises CheckpointError for a source that is damaged or not
    supported, QuantizationError, which names the tensor, for NaN and infinity, ContainerError for a destination that
    cannot be written.
    """
    _check_choice("layout", layout, layouts.LAYOUTS)
    _check_choice("scheme", scheme, SCHEMES)
    check_destination(destination, overwrite)
    path = registry.resolve(source, progress)
    if (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: this model is already quantised; give the model it was made from")
    checkpoint = open_checkpoint(path)
    check_supported(checkpoint.config)
    writer = ContainerWriter(
        destination=destination,
        config=checkpoint.config,
        layout=layout,
        scheme=scheme,
        source=_label(source),
        tokenizer_json=checkpoint.tokenizer_json,
        chat_template=checkpoint.chat_template,
        overwrite=overwrite,
    )
    total = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names())
    bar = show_progress(quiet=not progress, total=total, unit=" weights", unit_scale=True, desc="quantise")
    with bar, writer:
        _write(_Source(checkpoint, bar), writer, layout, scheme)
    return Container.open(writer.destination, verify=False)


def check_supported(config: ModelConfig) -> None:
    """CheckpointError for sizes that the formats and kernels do not take; before any work is done."""
    for name, step, why in (
        ("hidden_size", 32, "Q8_0 blocks of the embedding"),
        ("intermediate_size", 32, "vectors of the kernels"),
        ("head_dim", 16, "vectors of the kernels"),
    ):
        value = getattr(config, name)
        if value % step:
            raise CheckpointError(f"{name} is {value}, expected a multiple of {step} ({why})")


class _Source:
    """Reads finite tensors and moves the progress bar."""

    def __init__(self, checkpoint: Checkpoint, bar: tqdm) -> None:
        self._checkpoint, self._bar = checkpoint, bar
        self.config = checkpoint.config
        self.names = frozenset(checkpoint.names())

    def read(self, name: str) -> F32Array:
        """f32 tensor; QuantizationError when it holds NaN or infinity."""
        values = self._checkpoint.read(name)
        if not np.isfinite(values).all():
            where = ", ".join(str(int(i)) for i in np.argwhere(~np.isfinite(values))[0])
            raise QuantizationError(
                f"{self._checkpoint.source}: tensor {name} holds NaN or infinity (first at [{where}])"
            )
        self._bar.update(values.size)
        return values

    def stack(self, matrix: MatrixInfo) -> F32Array:
        """f32 [rows, cols]: the projections of a matrix, one below the other."""
        projections = matrix.projections()
        if len(projections) == 1:
            return self.read(f"{matrix.name}.weight")
        stacked = np.empty((matrix.rows, matrix.cols), np.float32)
        for name, rows in projections.items():
            stacked[rows] = self.read(f"{name}.weight")
        return stacked


def _write(source: _Source, writer: ContainerWriter, layout: str, scheme: str) -> None:
    dense = ["model.embed_tokens"] if source.config.tie_word_embeddings else ["model.embed_tokens", "lm_head"]
    for name in dense:
        writer.add(f"{name}.q8_0", _quantize_dense(source, name))
    for name in sorted(name for name in source.names if name.endswith("norm.weight")):
        writer.add(name, source.read(name))
    for matrix in stacked_matrices(source.config).values():
        if f"{next(iter(matrix.projections()))}.bias" in source.names:
            biases = [source.read(f"{name}.bias") for name in matrix.projections()]
            writer.add(f"{matrix.name}.bias", np.concatenate(biases))
        writer.add(f"{matrix.name}.{scheme}", _QUANTIZERS[scheme](source.stack(matrix), layout, matrix.name))


def _quantize_dense(source: _Source, name: str) -> npt.NDArray[np.uint8]:
    """Q8_0 blocks u8 [vocab, hidden / 32, 34] of the embedding or the head."""
    values = source.read(f"{name}.weight")
    rows, cols = values.shape
    blocks = np.empty((rows, cols // q8_0.VALUES, q8_0.BYTES), np.uint8)
    step = max(1, _CHUNK_VALUES // cols)
    for start in range(0, rows, step):
        part = values[start : start + step]
        try:
            quantized = q8_0.quantize(part.reshape(-1, q8_0.VALUES))
        except QuantizationError as error:
            raise QuantizationError(f"tensor {name}.weight: {error}") from error
        blocks[start : start + step] = quantized.reshape(len(part), -1, q8_0.BYTES)
    return blocks


def _label(source: str | Path) -> str:
    """What the container says it was made from: a name, or the end of a path (whose folders are nobody's business)."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else str(source)


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise QuantizationError(f"unknown {what} {value!r}; there are: {', '.join(known)}")
