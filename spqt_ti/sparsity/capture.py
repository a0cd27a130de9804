"""Magnitudes of the inputs at every site over a text: the raw material of every threshold.

Each site keeps one histogram of |x| over the whole range of f32: the bins are the upper 16 bits of the magnitude, so
a bin is 0.2 to 0.4 % wide, memory is bounded (256 KB a site) and histograms of several texts add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from spqt_ti.errors import PolicyError
from spqt_ti.model.llama import Llama
from spqt_ti.model.sites import SITES

_BINS = 1 << 16
_SHIFT = 15  # of a magnitude's 31 bits


class Magnitudes:
    """Histograms of |x|, or of |x| * weight where `weights` ((layer, site) -> f32 [cols]) has the site; i64 [layers, 4,
    bins].
    """

    def __init__(self, layers: int, weights: Mapping[tuple[int, str], np.ndarray] | None = None) -> None:
        self._weights = weights or {}
        self.counts = np.zeros((layers, len(SITES), _BINS), np.int64)

    def observe(self, layer: int, site: str, inputs: np.ndarray) -> None:
        """Count the inputs f32 [tokens, cols] of a site; an Observer of `Llama.prefill`."""
        if (layer, site) in self._weights:
            inputs = inputs * self._weights[layer, site]
        bits = np.ascontiguousarray(inputs, np.float32).view(np.uint32).reshape(-1) & np.uint32(0x7FFFFFFF)
        self.counts[layer, SITES.index(site)] += np.bincount(bits >> _SHIFT, minlength=_BINS)

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """f32 [layers, 4, len(levels)]: the magnitude below which a share `level` of the inputs lies, linear inside a
        bin.
        """
        result = np.zeros((*self.counts.shape[:2], len(levels)))
        for layer, site in np.ndindex(self.counts.shape[:2]):
            result[layer, site] = _quantiles(self.counts[layer, site], np.asarray(levels))
        return result.astype(np.float32)


def _edge(place: np.ndarray) -> np.ndarray:
    """Lower edge of a bin."""
    return (place.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)


def _quantiles(counts: np.ndarray, levels: np.ndarray) -> np.ndarray:
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = levels * below[-1]
    place = np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, int(np.flatnonzero(counts)[-1]))
    inside = (wanted - below[place]) / np.maximum(counts[place], 1)
    return _edge(place) + inside * (_edge(place + 1) - _edge(place))


def capture(
    llama: Llama, tokens: Sequence[int], window: int, weights: Mapping[tuple[int, str], np.ndarray] | None = None
) -> Magnitudes:
    """Run `tokens` densely, in windows of `window` tokens (of the context, if that is shorter), and count every input,
    times its weight if it has one.

    Raises PolicyError without tokens.
    """
    if not len(tokens):
        raise PolicyError("the calibration text has no tokens")
    magnitudes = Magnitudes(llama.config.num_hidden_layers, weights)
    window = min(window, llama.context)
    # tqdm takes None for "only on a terminal".
    for begin in tqdm(range(0, len(tokens), window), desc="calibrate", unit="window", leave=False, disable=None):
        llama.reset()
        llama.prefill(tokens[begin : begin + window], logits="none", observer=magnitudes.observe)
    llama.reset()
    return magnitudes
