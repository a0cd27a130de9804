"""A source model, whatever it is stored in: `open_checkpoint` gives names, shapes and one f32 tensor at a time.

Every tensor has Hugging Face's name, shape ([out, in]) and order of RoPE rows. Names and shapes of all tensors are
verified when a checkpoint is opened, so that work which takes minutes does not fail half-way. Nothing in a checkpoint
is ever executed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import CheckpointError
from spqt_ti.model.config import ModelConfig

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Superblocks:
    """A matrix that is stored in a scheme of this package: `load()` gives the bytes u8 [rows, bytes of a row]."""

    scheme: str
    load: Callable[[], npt.NDArray[np.uint8]] = field(repr=False)


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is: `load()` reads it as f32 [*shape]; `location` is for messages.

    `problem` says why it cannot be read; it matters only if the model needs the tensor. `read_whole` reads a tensor of
    whole numbers as it is stored, `superblocks` a matrix of a scheme of this package.
    """

    shape: tuple[int, ...]
    location: str
    load: Callable[[], FloatArray] = field(repr=False)
    problem: str = ""
    read_whole: Callable[[], npt.NDArray[Any]] | None = field(default=None, repr=False)
    superblocks: Superblocks | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Checkpoint:
    """An opened source model; `read` is the only thing that touches weights."""

    source: Path
    config: ModelConfig
    tokenizer_json: str = field(repr=False)
    chat_template: str | None = field(repr=False)
    tensors: Mapping[str, StoredTensor] = field(repr=False)

    def __post_init__(self) -> None:
        check_tensors(self.source, self.config, self.tensors)

    def names(self) -> list[str]:
        """Hugging Face names of all tensors, in the order in which a forward pass uses them."""
        return list(self.config.tensor_shapes())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, [out, in] for a matrix; KeyError when the model has none of that name."""
        return self.config.tensor_shapes()[name]

    def read(self, name: str) -> FloatArray:
        """The tensor as a new C-contiguous f32 array; CheckpointError when the file cannot be read."""
        shape = self.shape(name)
        stored = self.tensors[name]
        try:
            values = stored.load()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{stored.location}: tensor {name} cannot be read ({error})") from error
        return np.ascontiguousarray(values.reshape(shape), dtype=np.float32)


_FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}


def split_fused(tensors: Mapping[str, StoredTensor], config: ModelConfig) -> dict[str, StoredTensor]:
    """Stacked projections (`self_attn.qkv_proj`) as the parts that they are made of; others as they are, and those of
    another size than their parts, for `check_tensors` to name.
    """
    shapes = config.tensor_shapes() if config.num_hidden_layers <= len(tensors) else {}
    split: dict[str, StoredTensor] = {}
    for name, stored in tensors.items():
        stem, _, kind = name.rpartition(".")
        stack = next((stack for stack in _FUSED if stem.endswith(stack)), "")
        names = [f"{stem.rpartition('.')[0]}.{part}.{kind}" for part in _FUSED.get(stack, ())]
        parts = [shapes[part] for part in names if part in shapes]
        rows = sum(shape[0] for shape in parts)
        if not names or len(parts) < len(names) or stored.shape != (rows, *parts[0][1:]):
            split[name] = stored
            continue
        first = 0
        for part, shape in zip(names, parts, strict=True):
            load = partial(_rows, stored.load, first, shape[0])
            kept = stored.superblocks
            if kept is not None:
                kept = Superblocks(kept.scheme, partial(_rows, kept.load, first, shape[0]))
            location = f"{stored.location} ({name})"
            split[part] = StoredTensor(shape, location, load, stored.problem, superblocks=kept)
            first += shape[0]
    return split


def _rows(load: Callable[[], npt.NDArray[Any]], first: int, count: int) -> npt.NDArray[Any]:
    return load()[first : first + count]


def check_tensors(source: Path, config: ModelConfig, tensors: Mapping[str, StoredTensor]) -> None:
    """CheckpointError unless `tensors` are exactly those that `config` needs.

    A tensor too many is refused as well: a bias or a norm that is left out would make another model of it.
    """
    # First, because a damaged number of layers may be billions.
    if config.num_hidden_layers > len(tensors):
        raise CheckpointError(
            f"{source}: {config.num_hidden_layers} layers are configured, but there are only {len(tensors)} tensors"
        )
    shapes = config.tensor_shapes()
    missing = [name for name in shapes if name not in tensors]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{source}: tensor {missing[0]}{more} is missing, expected shape {list(shapes[missing[0]])}"
        )
    for name, shape in shapes.items():
        stored = tensors[name]
        if stored.shape != shape:
            raise CheckpointError(
                f"{stored.location}: tensor {name} has shape {list(stored.shape)}, expected {list(shape)}"
            )
        if stored.problem:
            raise CheckpointError(f"{stored.location}: tensor {name} {stored.problem}")
    for name, stored in tensors.items():
        if name not in shapes:
            raise CheckpointError(
                f"{stored.location}: tensor {name} is not part of a {config.model_type} model as configured"
            )
