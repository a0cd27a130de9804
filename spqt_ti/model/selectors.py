"""What decides which inputs are skipped: a threshold per layer and site and, where a policy has them, weights of the
inputs. An input is active where |x| > threshold, or |x| * weight > threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spqt_ti.kernels.shared.geometry import LANES
from spqt_ti.model.sites import SITES


@dataclass(frozen=True)
class SelectorMap:
    """Offsets in the selectors' array (f32 x 16), which begins with the thresholds [layers][4]; one array, because
    every argument of a kernel costs time at each launch.
    """

    layers: int
    weighted: int  # first value, not vector: 1 where a site has weights, [layers][4]
    weights: int  # first vector: [layers][4][stride]
    stride: int  # vectors of the widest site
    vectors: int

    @classmethod
    def of(cls, layers: int, widest: int) -> SelectorMap:
        """For this number of layers, whose widest site has `widest` inputs."""
        flags = -(-layers * len(SITES) // LANES)
        stride = widest // LANES
        return cls(layers, flags * LANES, 2 * flags, stride, 2 * flags + layers * len(SITES) * stride)


class Selectors:
    """Thresholds and weights of every site, in the memory of the host; at first every site is dense.

    `inputs`: inputs that a token has at each site, i32 [layers, 4], or [4] where layers are alike.
    `values`: the memory, f32 [map.vectors * 16], zeros.
    """

    def __init__(self, map: SelectorMap, inputs: np.ndarray, values: np.ndarray) -> None:
        self.map, self.values = map, values
        self._inputs = np.broadcast_to(inputs, (map.layers, len(SITES)))
        sites = map.layers * len(SITES)
        self.thresholds = values[:sites].reshape(map.layers, len(SITES))
        self._weighted = values[map.weighted :][:sites].reshape(map.layers, len(SITES))
        self._weights = values[map.weights * LANES :].reshape(map.layers, len(SITES), -1)
        self.changes = 0  # of the weights; thresholds are written to from outside

    def weigh(self, layer: int, site: str, weights: np.ndarray | None) -> None:
        """Weights f32 [cols] of a site's inputs from now on; None: none. ValueError for another shape."""
        at = layer, SITES.index(site)
        self.changes += 1
        self._weighted[at] = weights is not None
        if weights is not None:
            expected = (int(self._inputs[at]),)
            if weights.shape != expected:
                raise ValueError(f"weights of {site} have shape {weights.shape}, expected {expected}")
            self._weights[at][: weights.size] = weights

    def masked(self, layer: int, site: int, x: np.ndarray) -> np.ndarray:
        """x (f32 [..., cols]), the inputs of a site, with zeros for those that are skipped."""
        threshold = self.thresholds[layer, site]
        if not threshold > 0:
            return x
        scores = np.abs(x)
        if self._weighted[layer, site]:
            scores = scores * self._weights[layer, site][: x.shape[-1]]
        return np.where(scores <= threshold, np.float32(0), x)  # NaN stays, to be noticed

    def clear(self) -> None:
        """Every site dense and without weights."""
        self.changes += 1
        self.thresholds[:] = 0
        self._weighted[:] = 0
