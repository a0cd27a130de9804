"""A source model into a container, tensor by tensor: memory holds a few times the largest tensor, never the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from spqt_ti.container import (
    MANIFEST,
    Container,
    ContainerWriter,
    MatrixInfo,
    Source,
    Storage,
    check_destination,
    plan_matrices,
)
from spqt_ti.container.matrices import EMBEDDING, HEAD, untied_where_unlike
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.gptq_model import MatrixQuantizer, round_to_nearest
from spqt_ti.convert.identity import files_of, name_of
from spqt_ti.convert.keep import plan_keeping
from spqt_ti.convert.rotate import rotated
from spqt_ti.errors import CheckpointError, QuantizationError
from spqt_ti.memory import available_memory
from spqt_ti.model.config import ModelConfig
from spqt_ti.progress import progress as show_progress
from spqt_ti.sources import registry
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.sources.open import open_checkpoint

__all__ = ["check_supported", "label_of", "open_source", "quantize", "quantize_checkpoint"]

F32Array = npt.NDArray[np.float32]


def quantize(
    source: str | Path,
    destination: str | Path,
    layout: str = "zigzag",
    scheme: str = "q4_k",
    progress: bool = True,
    overwrite: bool = False,
    *,
    rotate: Iterable[str] = (),
    seed: int = 0,
    keep: bool = False,
) -> Container:
    """Quantise a model (Hugging Face directory, GGUF file, known name or hub id) into a new directory.

    `scheme` and `layout` are of the layers' matrices, or name classes of them as well ("q4_k,down=q6_k,head=q6_k"; see
    `parse_storage`). Embedding and head are Q8_0 otherwise (a tied one is stored once, unless the head is chosen to be
    another); norms and biases stay f32. `progress` shows a bar on stderr if that is a terminal; `overwrite` replaces a
    container. `rotate`: components that are rotated before, with signs drawn from `seed` (see convert/rotate.py).
    `keep`: matrices of a GGUF file that are in a scheme of this package keep their bytes, in row layout (see keep.py).

    The directory appears when it is complete, or not at all. Raises CheckpointError for a source that is damaged or not
    supported, QuantizationError, which names the tensor, for NaN and infinity, ContainerError for a destination that
    cannot be written.
    """
    storage = parse_storage(scheme, layout)
    check_destination(destination, overwrite)
    if keep and tuple(rotate):
        raise QuantizationError("bytes that are kept cannot be rotated: give keep or rotate")
    checkpoint, records = rotated(open_source(source, progress), rotate, seed)
    quantizer: MatrixQuantizer = round_to_nearest
    if keep:
        keeping = plan_keeping(checkpoint, storage)
        storage, quantizer = dict(keeping.storage), keeping.quantizer()
    return quantize_checkpoint(
        checkpoint, destination, storage, label_of(source), transformations=records, quantizer=quantizer,
        progress=progress, overwrite=overwrite,
    )  # fmt: skip


def open_source(source: str | Path, progress: bool = True) -> Checkpoint:
    """The source model at a path, of a known name or a hub id. CheckpointError where it is quantised already."""
    path = registry.resolve(source, progress)
    if (path / MANIFEST).is_file():
        raise CheckpointError(f"{path}: this model is already quantised; give the model it was made from")
    checkpoint = open_checkpoint(path)
    if checkpoint.config.rotates_down:
        raise CheckpointError(f"{path}: rotates_down is for quantised models; give the model it was made from")
    return checkpoint


def quantize_checkpoint(
    checkpoint: Checkpoint,
    destination: str | Path,
    storage: Mapping[str, Storage],
    label: str,
    *,
    transformations: Iterable[Mapping[str, Any]] = (),
    quantizer: MatrixQuantizer = round_to_nearest,
    progress: bool = True,
    overwrite: bool = False,
) -> Container:
    """As `quantize`, for an opened source, with scheme and layout by class or by matrix (see `plan_matrices`).

    `label` is what the container says it was made from, `transformations` what was done to the weights, and
    `quantizer` what makes a matrix's bytes.
    """
    check_supported(checkpoint.config)
    config = untied_where_unlike(checkpoint.config, storage)
    _check_memory(checkpoint)
    writer = ContainerWriter(
        destination=destination,
        config=config,
        matrices=plan_matrices(config, storage),
        source=Source(label, files_of(checkpoint.source)),
        tokenizer_json=checkpoint.tokenizer_json,
        chat_template=checkpoint.chat_template,
        transformations=transformations,
        overwrite=overwrite,
    )
    total = sum(int(np.prod(shape)) for shape in config.tensor_shapes().values())
    bar = show_progress(quiet=not progress, total=total, unit=" weights", unit_scale=True, desc="quantise")
    with bar, writer:
        _write(_Source(checkpoint, bar), writer, quantizer)
    return Container.open(writer.destination, verify=False)


def check_supported(config: ModelConfig) -> None:
    """CheckpointError for sizes that the formats and kernels do not take; before any work is done."""
    for name, values, step, why in (
        ("hidden_size", (config.hidden_size,), 32, "Q8_0 blocks of the embedding"),
        ("intermediate_size", config.widths(), 32, "vectors of the kernels"),
        ("head_dim", (config.head_dim,), 16, "vectors of the kernels"),
    ):
        for value in (value for value in values if value % step):
            raise CheckpointError(f"{name} is {value}, expected a multiple of {step} ({why})")


def _check_memory(checkpoint: Checkpoint) -> None:
    """QuantizationError where the largest matrix does not fit: as read, stacked in f32, and what is made of it."""
    largest = max(4 * math.prod(shape) for shape in checkpoint.config.tensor_shapes().values())
    needed, free = 4 * largest, available_memory()
    if free is not None and free < needed:
        raise QuantizationError(
            f"{checkpoint.source}: quantising needs about {needed / 1e6:.1f} MB of memory, "
            f"and {free / 1e6:.1f} MB are free; close other programs or take a machine with more"
        )


class _Source:
    """Reads finite tensors and moves the progress bar."""

    def __init__(self, checkpoint: Checkpoint, bar: tqdm) -> None:
        self._checkpoint, self._bar = checkpoint, bar
        self.config = checkpoint.config
        self.names = frozenset(checkpoint.names())

    def read(self, name: str) -> F32Array:
        """f32 tensor (a tied head is the embedding); QuantizationError when it holds NaN or infinity."""
        values = self._checkpoint.read(name if name in self.names else f"{EMBEDDING}.weight")
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


def _write(source: _Source, writer: ContainerWriter, quantizer: MatrixQuantizer) -> None:
    """Embedding and head, small tensors, then the layers one after the other: a shard is written when it is whole."""
    matrices = dict(writer.matrices)
    for name in (EMBEDDING, HEAD):
        if name in matrices:
            _write_matrix(source, writer, quantizer, matrices.pop(name))
    for name in sorted(source.names.intersection(writer.missing)):
        writer.add(name, source.read(name))
    for matrix in matrices.values():
        if f"{matrix.name}.bias" in writer.missing:
            biases = [source.read(f"{name}.bias") for name in matrix.projections()]
            writer.add(f"{matrix.name}.bias", np.concatenate(biases))
        _write_matrix(source, writer, quantizer, matrix)


def _write_matrix(
    source: _Source, writer: ContainerWriter, quantizer: MatrixQuantizer, matrix: MatrixInfo
) -> None:  # fmt: skip
    writer.add_matrix(matrix, quantizer(matrix, source.stack(matrix)))


def label_of(source: str | Path) -> str:
    """What the container says it was made from: a name, or the end of a path (whose folders are nobody's business)."""
    path = Path(source).expanduser()
    return name_of(path) if path.exists() else str(source)
