"""Static pruning of a source model, at a rate per layer, before it is quantised.

* `channels`: the least important channels of a layer's feed-forward network are removed: their rows of gate and up and
  their columns of down. What remains is a narrower network, and the file and every product are smaller.
  A channel's importance is |W[:, i]| * |x_i|: the Euclidean norm of its column of down, times that of its activations
  (down's inputs) over the calibration windows. It is what the layer's output loses, if channels are uncorrelated.
* `compensated`: so are `channels`, and what remains of down is refitted to the layer's output by least squares: the
  W' that minimises |X W^T - X_K W'^T|^2 + damping |W' - W_K|^2, where K are the channels that remain.
* `weights`: single weights become zero, the same share of each row of every matrix, by |W_ij| * |x_j| (Wanda, arXiv
  2306.11695). Sizes stay as they are, and quantisation may round a zero to something else: for studies of accuracy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.convert.walk import Inputs, SourceWalk
from spqt_ti.errors import AllocationError, QuantizationError
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint, StoredTensor

__all__ = [
    "MODES", "STEP", "Pruner", "check_request", "importance", "kept_width", "pruned_checkpoint", "pruned_config",
    "refitted", "without_least",
]  # fmt: skip

MODES = ("compensated", "channels", "weights")
STEP = 32  # channels: what kernels and formats take whole numbers of
# Of the mean diagonal of the inputs' second moments. On 4096 tokens .01 made down's held-out error larger than no refit
# in six layers of SmolLM2, 1 made it smaller.
DAMPING = 1.0

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def check_request(rates: Sequence[float], layers: int, mode: str) -> None:
    """Raise QuantizationError for a mode that there is not, AllocationError for rates that are not one per layer, or
    not within 0 to 1.
    """
    if mode not in MODES:
        raise QuantizationError(f"unknown mode of pruning {mode!r}; there are: {', '.join(MODES)}")
    if len(rates) != layers:
        raise AllocationError(f"{len(rates)} rates of pruning, expected {layers}, one per layer")
    for layer, rate in enumerate(rates):
        if not 0 <= rate < 1:
            raise AllocationError(f"the rate of layer {layer} is {rate:g}, expected 0 or more and less than 1")


def kept_width(width: int, rate: float) -> int:
    """Channels that remain of `width`: the multiple of STEP that is nearest to the rate's, at least one STEP."""
    return min(width, max(STEP, STEP * round(width * (1 - rate) / STEP)))


def pruned_config(config: ModelConfig, rates: Sequence[float], mode: str) -> ModelConfig:
    """Of a model whose layers are pruned at these rates, in one of MODES."""
    if mode == "weights":
        return config
    widths = tuple(kept_width(*one) for one in zip(config.widths(), rates, strict=True))
    return replace(config, intermediate_size=max(widths), intermediate_sizes=widths)


def importance(down: npt.NDArray[np.floating], squares: F64Array) -> F64Array:
    """f64 [channels]: norm of each column of down [hidden, channels] times that of its inputs, whose `squares` are
    summed over tokens.
    """
    return np.sqrt(np.square(down, dtype=np.float64).sum(axis=0) * squares)


def refitted(down: F32Array, kept: Indices, moments: F64Array, damping: float = DAMPING) -> F32Array:
    """Columns `kept` of down f32 [hidden, channels], with what the others do added to them by least squares.

    `moments`: sum x x^T of the inputs, f64 [channels, channels]. QuantizationError where they cannot be solved.
    """
    removed = np.setdiff1d(np.arange(down.shape[1]), kept)
    if not removed.size:
        return down
    among_kept = moments[np.ix_(kept, kept)]
    among_kept[np.diag_indices(len(kept))] += damping * (float(np.diag(moments).mean()) or 1.0)
    try:
        shares = np.linalg.solve(among_kept, moments[np.ix_(kept, removed)])  # of each removed channel, by the others
    except np.linalg.LinAlgError as error:
        raise QuantizationError("the inputs of down do not span its channels; calibrate on more text") from error
    return (down[:, kept] + down[:, removed].astype(np.float64) @ shares.T).astype(np.float32)


def without_least(w: F32Array, norms: F64Array, rate: float) -> F32Array:
    """W f32 [rows, cols] with zeros for the share `rate` of each row whose |W_ij| * norms_j are the least."""
    count = round(rate * w.shape[1])
    least = np.argsort(np.abs(w) * norms, axis=1, kind="stable")[:, :count]
    out = w.copy()
    np.put_along_axis(out, least, 0, axis=1)
    return out


@dataclass
class _Statistics:
    """Of a layer's inputs: sums of squares of every site, and the moments of down's where they are asked for."""

    squares: dict[Site, F64Array]
    moments: F64Array | None

    @classmethod
    def of(cls, inputs: Inputs, with_moments: bool) -> _Statistics:
        down = inputs[Site.DOWN]
        return cls(
            {site: np.square(x, dtype=np.float64).sum(axis=0) for site, x in inputs.items()},
            (down.T @ down).astype(np.float64) if with_moments else None,
        )

    def add(self, other: _Statistics) -> None:
        """Those of other tokens."""
        for site, squares in other.squares.items():
            self.squares[site] += squares
        if self.moments is not None and other.moments is not None:
            self.moments += other.moments


class Pruner:
    """Tensors of a source pruned at `rates`, one per layer, by what `windows` (see SourceWalk) say; some of MODES.

    Layers are cheapest to read in order. Raises what `check_request` does.
    """

    def __init__(
        self, checkpoint: Checkpoint, rates: Sequence[float], windows: Sequence[Sequence[int]], mode: str = MODES[0]
    ) -> None:
        check_request(rates, checkpoint.config.num_hidden_layers, mode)
        self._checkpoint, self.rates, self.mode = checkpoint, tuple(rates), mode
        self._walk = SourceWalk(checkpoint, windows, "pruning")
        self._statistics: _Statistics | None = None  # of the layer that was entered last
        self._kept: dict[int, Indices] = {}
        self._down: F32Array | None = None  # of that layer, too

    @property
    def config(self) -> ModelConfig:
        """Of the pruned model."""
        return pruned_config(self._checkpoint.config, self.rates, self.mode)

    def record(self) -> dict[str, Any]:
        """What a container says of it (see `Manifest.transformations`)."""
        tokens = self._walk.tokens
        return {
            "kind": "pruning", "mode": self.mode, "rates": list(self.rates), "widths": list(self.config.widths()),
            "tokens": int(tokens.size), "window": int(tokens.shape[1]),
            **({"damping": DAMPING} if self.mode == "compensated" else {}),
        }  # fmt: skip

    def kept(self, layer: int) -> Indices:
        """Channels of a layer that remain, ascending."""
        if layer not in self._kept:
            self._enter(layer)
        return self._kept[layer]

    def tensor(self, name: str) -> F32Array:
        """A tensor of the pruned model."""
        values = self._checkpoint.read(name)
        if not name.startswith("model.layers."):
            return values
        layer, module = int(name.split(".")[2]), name.split(".", 3)[3]
        projection, _, kind = module.rpartition(".")
        if self.rates[layer] == 0 or "norm" in module:
            return values
        if self.mode == "weights":
            return self._with_zeros(layer, projection, values) if kind == "weight" else values
        if projection in ("mlp.gate_proj", "mlp.up_proj"):
            return values[self.kept(layer)]
        if (projection, kind) == ("mlp.down_proj", "weight"):
            return self._narrow_down(layer, values)
        return values

    def _with_zeros(self, layer: int, projection: str, values: F32Array) -> F32Array:
        site = next(site for site in Site if projection.rpartition(".")[2] in site.projections)
        return without_least(values, np.sqrt(self._enter(layer).squares[site]), self.rates[layer])

    def _narrow_down(self, layer: int, values: F32Array) -> F32Array:
        if self.mode == "channels":
            return values[:, self.kept(layer)]
        statistics = self._enter(layer)
        if self._down is None:
            assert statistics.moments is not None
            self._down = refitted(values, self._kept[layer], statistics.moments)
            statistics.moments = None
        return self._down.copy()

    def _add(self, found: _Statistics) -> None:
        if self._statistics is None:
            self._statistics = found
        else:
            self._statistics.add(found)

    def _enter(self, layer: int) -> _Statistics:
        """Have the statistics of a layer, and choose its channels."""
        if self._statistics is not None and layer == self._walk.layer - 1:
            return self._statistics
        if layer < self._walk.layer:
            self._walk.restart()
        while self._walk.layer <= layer:
            with_moments = self._walk.layer == layer and self.mode == "compensated"
            self._statistics = None
            self._walk.run_layer(functools.partial(_Statistics.of, with_moments=with_moments), self._add)
        statistics, self._down = self._statistics, None
        assert statistics is not None
        if self.mode != "weights":
            down = self._checkpoint.read(f"model.layers.{layer}.mlp.down_proj.weight")
            scores = importance(down, statistics.squares[Site.DOWN])
            order = np.argsort(-scores, kind="stable")
            self._kept[layer] = np.sort(order[: kept_width(down.shape[1], self.rates[layer])])
        return statistics


def pruned_checkpoint(checkpoint: Checkpoint, pruner: Pruner) -> Checkpoint:
    """A source whose tensors are those of the pruned model."""

    def stored(name: str, shape: tuple[int, ...]) -> StoredTensor:
        return StoredTensor(shape, checkpoint.tensors[name].location, lambda: pruner.tensor(name))

    tensors = {name: stored(name, shape) for name, shape in pruner.config.tensor_shapes().items()}
    return replace(checkpoint, config=pruner.config, tensors=tensors)
