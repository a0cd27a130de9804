"""Where everything but the weights lies on a GPU: one array of f32 and one of i32, for decode and prefill.

Few arrays, because each costs 4 us per launch.
"""

from __future__ import annotations

from dataclasses import dataclass

from spqt_ti.kernels.shared.geometry import LANES
from spqt_ti.kernels.simt.hadamard import Runs
from spqt_ti.kernels.simt.heads import HeadConstants
from spqt_ti.kernels.simt.norm import norm_groups
from spqt_ti.kernels.simt.products import partial_size
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.constants import Constants
from spqt_ti.model.engine import CHUNK
from spqt_ti.model.hadamard import Passes
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.simt.weights import WeightMap
from spqt_ti.model.sites import SITES


@dataclass(frozen=True)
class FloatMap:
    """First values of the parts of the f32 array. The first line is written by the host, the second by decode, the
    third by prefill ([CHUNK] times each).
    """

    selectors: int  # as SelectorMap has them
    constants: int

    hidden: int  # the residual stream
    x: int  # input of qkv and gate_up
    attention: int  # input of o
    activation: int  # input of down
    partial: int  # partial sums of the GEMV at work
    squares: int  # [2][groups of NORM_GROUP], sums of squares of their rows: of the residual stream, and before it
    best: int  # [tiles], highest logit of each
    activated: int  # of down's input before it is turned, where it is

    chunk_hidden: int
    chunk_inputs: tuple[int, ...]  # per site
    chunk_query: int
    chunk_factors: int  # of the norms of each head of q and k, where a model has such
    chunk_output: int
    size: int

    @classmethod
    def of(cls, weight_map: WeightMap, constants: Constants, selectors: SelectorMap) -> FloatMap:
        """Lay the parts out one after the other."""
        config, matrix_maps = weight_map.config, weight_map.matrices
        multiplied = [*matrix_maps.values(), *([weight_map.head] if weight_map.head else [])]
        attention = matrix_maps["o"].shape.cols
        sizes = {
            "selectors": selectors.vectors * LANES,
            "constants": constants.values.size,
            "hidden": config.hidden_size,
            "x": config.hidden_size,
            "attention": attention,
            "activation": config.intermediate_size,
            "partial": max(partial_size(matrix_map.shape, matrix_map.division) for matrix_map in multiplied),
            "squares": 2 * norm_groups(config.hidden_size),
            "best": weight_map.tiles,
            "activated": config.intermediate_size if config.rotates_down else 0,
            "chunk_hidden": CHUNK * config.hidden_size,
            **{f"chunk_{site}": CHUNK * matrix_maps[site].shape.cols for site in SITES},
            "chunk_query": CHUNK * attention,
            "chunk_factors": CHUNK * (config.num_attention_heads + config.num_key_value_heads)
            if "q_norm" in constants.layer
            else 0,
            "chunk_output": CHUNK * max(matrix_map.shape.padded_rows for matrix_map in matrix_maps.values()),
        }
        starts, at = {}, 0
        for name, size in sizes.items():
            starts[name] = at
            at += size
        inputs = tuple(starts.pop(f"chunk_{site}") for site in SITES)
        return cls(**starts, chunk_inputs=inputs, size=at)

    def runs(self, constants: Constants, config: ModelConfig, width: int) -> Runs | None:
        """What turns the input of down in layers so wide; None where nothing does."""
        transform = config.down_transform(config.widths().index(width))
        if transform is None:
            return None
        passes = Passes.of(transform)
        return Runs(passes.order, passes.run, self.constants + constants.factor_of(config, width))

    def head_constants(self, constants: Constants, config: ModelConfig, context: int) -> HeadConstants:
        """Where in the f32 array the constants of heads are."""
        layer = {name: self.constants + first for name, first in constants.layer.items()}
        in_layer = map(layer.get, ("q_norm", "k_norm", "window", "rope"))
        return HeadConstants(
            self.constants + constants.rope, constants.stride, config.rms_norm_eps, config.rotary_dim,
            context * config.head_dim, config.architecture.qk_norm_whole, *in_layer,
        )  # fmt: skip


@dataclass(frozen=True)
class IntegerMap:
    """First entries of the parts of the i32 array."""

    position: int  # of the token at work
    counts: int  # [layers][4], active inputs
    active: int  # the active list of the GEMV at work
    lengths: int  # of its segments
    best_rows: int  # [tiles], token of each tile's highest logit
    best: int  # the token of the highest logit
    size: int

    @classmethod
    def of(cls, weight_map: WeightMap) -> IntegerMap:
        """Lay the parts out one after the other."""
        counts = 1
        active = counts + weight_map.config.num_hidden_layers * len(SITES)
        lengths = active + max(matrix_map.shape.cols for matrix_map in weight_map.matrices.values())
        best_rows = lengths + max(matrix_map.segments.count for matrix_map in weight_map.matrices.values())
        best = best_rows + weight_map.tiles
        return cls(0, counts, active, lengths, best_rows, best, best + 1)
