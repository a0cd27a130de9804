"""Histograms of magnitudes over the whole range of f32, and quantiles from them.

The bins are the upper 16 bits of a magnitude, so a bin is 0.2 to 0.4 % wide, a histogram is 512 KB, and histograms of
several texts add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 1 << 16
_SHIFT = 15  # of a magnitude's 31 bits


def histogram(values: np.ndarray) -> np.ndarray:
    """Counts i64 [BINS] of |values|, of any shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(-1) & np.uint32(0x7FFFFFFF)
    return np.bincount(bits >> _SHIFT, minlength=BINS)


def quantiles(counts: np.ndarray, levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """f32 [len(levels)]: the magnitude below which a share `level` of what was counted lies, linear inside a bin."""
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = np.asarray(levels) * below[-1]
    place = np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, int(np.flatnonzero(counts)[-1]))
    inside = (wanted - below[place]) / np.maximum(counts[place], 1)
    return (_edge(place) + inside * (_edge(place + 1) - _edge(place))).astype(np.float32)


def _edge(place: np.ndarray) -> np.ndarray:
    """Lower edge of a bin."""
    return (place.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
