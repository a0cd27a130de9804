"""Selectors that no input lies near: rounding then flips none, and two ways to compute a sparse pass must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES

Weights = Mapping[tuple[int, str], np.ndarray]


def open_thresholds(llama: Llama, tokens: Sequence[int], weights: Weights | None = None) -> float:
    """Set every gate of `llama` so that about half of the inputs of `tokens` are skipped, with the threshold in the
    middle of the widest gap there. Returns the least relative distance of an input from its threshold.

    `weights`: as a policy's. One masked pass per site, so that each is seen with all selectors before it in force.
    """
    weights, nearest = weights or {}, np.inf
    llama.selectors.clear()
    for layer, place in np.ndindex(llama.thresholds.shape):
        site = SITES[place]
        scores = np.abs(inputs_of(llama, tokens, layer, site)) * weights.get((layer, site), np.float32(1))
        low, high = widest_gap(np.sort(scores[scores > 0], axis=None))  # after relu half of them are 0
        llama.thresholds[layer, place] = (low + high) / 2
        llama.selectors.weigh(layer, site, weights.get((layer, site)))
        nearest = min(nearest, (high - low) / (high + low))
    llama.reset()
    return float(nearest)


def inputs_of(llama: Llama, tokens: Sequence[int], layer: int, site: str) -> np.ndarray:
    """Inputs f32 [tokens, cols] of a site in a masked pass."""
    seen: dict[tuple[int, str], np.ndarray] = {}

    def observe(at: int, name: str, inputs: np.ndarray) -> None:
        if (at, name) == (layer, site):
            seen[at, name] = inputs.copy()

    llama.reset()
    llama.prefill(tokens, "none", masked=True, observer=observe)
    return seen[layer, site]


def widest_gap(ordered: np.ndarray) -> tuple[float, float]:
    """Both ends of the widest gap (as a ratio) between the 40 % and the 60 % quantile."""
    middle = ordered[int(0.4 * ordered.size) : int(0.6 * ordered.size)].astype(np.float64)
    widest = int(np.argmax(middle[1:] / middle[:-1]))
    return middle[widest], middle[widest + 1]
