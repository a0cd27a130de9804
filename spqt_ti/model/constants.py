"""The small f32 tensors of a model in one array: norms, biases, windows and the RoPE table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from spqt_ti.container import Container
from spqt_ti.kernels.shared.geometry import LANES
from spqt_ti.kernels.shared.rope import rope_table
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.hadamard import Passes
from spqt_ti.model.sites import Site


class Turn(IntEnum):
    """Lanes of a layer's "rotation": runs, log2 of a run's vectors, first vector of its factor among the factors."""

    ORDER = 0
    LEVELS = 1
    FACTOR = 2


@dataclass(frozen=True)
class Constants:
    """Per layer its norms, the biases that exist ("qkv_bias", ...) and, where some layer of the model does not see all
    of the context, its "window": the positions that it sees, 16 times; and where layers have different RoPE tables its
    "rope": the number of its table, 16 times. Then the final norm,
    which has the factor of logits in its weights, and the RoPE tables. What is added to weights of norms has been.

    Where the input of down is turned when it is computed, each layer has "rotation": what Turn says
    of its transform, in LANES values; and at `factors` are those of all widths, each from a multiple of LANES on.

    `values` f32 [n]; `layer`: name -> first value among those of a layer, which take `stride` values.
    """

    values: np.ndarray
    layer: dict[str, int]
    stride: int
    final_norm: int
    rope: int
    factors: int = 0

    def factor_of(self, config: ModelConfig, width: int) -> int:
        """First value of the factor of a layer so wide."""
        return self.factors + _factors(config)[width]

    @classmethod
    def read(cls, container: Container, context: int) -> Constants:
        """Those of a container, for a context of `context` positions."""
        config = container.config
        pieces: list[np.ndarray] = []
        first: dict[str, int] = {}
        stride = 0
        whole = config.max_position_embeddings
        tables = config.rope_tables(context)
        windows = [window if window < whole else context for window in config.windows()]
        for layer in range(config.num_hidden_layers):
            for name, tensor in _tensors(config):
                if layer == 0:
                    first[name] = _size(pieces)
                values = container.read(f"model.layers.{layer}.{tensor}")
                pieces.append(values + np.float32(config.architecture.norm_offset) if "norm" in name else values)
            if min(windows) < context:  # exact: integers below 2^24
                first.setdefault("window", _size(pieces))
                pieces.append(np.full(LANES, windows[layer], np.float32))
            if len(tables) > 1:
                first.setdefault("rope", _size(pieces))
                pieces.append(np.full(LANES, config.rope_table_of(layer), np.float32))
            if config.rotates_down:
                first.setdefault("rotation", _size(pieces))
                pieces.append(_rotation(config, layer))
            stride = stride or _size(pieces)
        final_norm = _size(pieces)
        pieces.append(_final_norm(config, container.read("model.norm.weight")))
        rope = _size(pieces)
        pieces += [rope_table(table.angles, context, table.lengths) for table in tables]
        factors = _size(pieces)
        pieces += [_padded(_passes(config, width).factor()) for width in _factors(config)]
        values = np.concatenate([piece.astype(np.float32).reshape(-1) for piece in pieces])
        return cls(values, first, stride, final_norm, rope, factors)


def _tensors(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for norm in config.norms():
        yield norm.role, norm.tensor
    for site in Site:
        if config.has_bias(site.module):
            yield f"{site.label}_bias", f"{site.module}.bias"


def _passes(config: ModelConfig, width: int) -> Passes:
    transform = config.down_transform(config.widths().index(width))
    assert transform is not None, "asked only of models that turn the input of down"
    return Passes.of(transform)


def _factors(config: ModelConfig) -> dict[int, int]:
    """Width of layers -> first value of its factor among the factors; empty where nothing is turned."""
    starts: dict[int, int] = {}
    at = 0
    for width in sorted(set(config.widths())) if config.rotates_down else ():
        starts[width] = at
        at += -(-(_passes(config, width).order ** 2) // LANES) * LANES
    return starts


def _rotation(config: ModelConfig, layer: int) -> np.ndarray:
    """The values of a layer by the columns of Turn. Exact: integers below 2^24."""
    width = config.widths()[layer]
    passes, values = _passes(config, width), np.zeros(LANES, np.float32)
    values[Turn.ORDER], values[Turn.LEVELS] = passes.order, (passes.run // LANES).bit_length() - 1
    values[Turn.FACTOR] = _factors(config)[width] // LANES
    return values


def _padded(factor: np.ndarray) -> np.ndarray:
    return np.pad(factor.reshape(-1), (0, -factor.size % LANES))


def _final_norm(config: ModelConfig, weight: np.ndarray) -> np.ndarray:
    offset, factor = config.architecture.norm_offset, config.scales.logits
    return ((weight.astype(np.float64) + offset) * factor).astype(np.float32)


def _size(pieces: list[np.ndarray]) -> int:
    return sum(piece.size for piece in pieces)
