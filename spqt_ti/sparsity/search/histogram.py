"""Histograms of magnitudes over the whole range of f32, and quantiles from them.

The bin_of are the upper 16 bits of a magnitude, so a bin is 0.2 to 0.4 % wide, a histogram is 512 KB, and histograms of
several texts add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 1 << 16
LEVELS = tuple(round(0.01 * i, 2) for i in range(100))  # of sparsity, whose quantiles calibrations keep
TIED = 0.01  # a bin of a smooth distribution has less than 0.4 %
_SHIFT = 15  # of a magnitude's 31 bits
_MARGIN = 1e-6  # calibrations keep 7 digits: their rounding must not reach the edge


def histogram(values: np.ndarray) -> np.ndarray:
    """Counts i64 [BINS] of |values|, of any shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(-1) & np.uint32(0x7FFFFFFF)
    return np.bincount(bits >> _SHIFT, minlength=BINS)


def quantiles(counts: np.ndarray, levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """f32 [len(levels)]: the magnitude below which a share `level` of what was counted lies, linear inside a bin.

    As thresholds they never skip everything: in a bin that holds more than TIED of all values (equal ones, or a narrow
    range), and in the highest bin, it is a little less than the bin's lower edge, so that none of them is skipped.
    """
    below = np.concatenate([[0], np.cumsum(counts)])
    wanted = np.asarray(levels) * below[-1]
    last = int(np.flatnonzero(counts)[-1])
    bin_of = np.clip(np.searchsorted(below, wanted, side="right") - 1, 0, last)
    inside = (wanted - below[bin_of]) / np.maximum(counts[bin_of], 1)
    within = _edge(bin_of) + inside * (_edge(bin_of + 1) - _edge(bin_of))
    tied = (counts[bin_of] > TIED * below[-1]) & (bin_of > 0)  # zeros are skipped at no cost
    return np.where(tied | (bin_of == last), _edge(bin_of) * (1 - _MARGIN), within).astype(np.float32)


def _edge(bin_of: np.ndarray) -> np.ndarray:
    """Lower edge of a bin."""
    return (bin_of.astype(np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
