"""Scores |x| * c of inputs: their quantiles, and the mask that a threshold makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.search.histogram import LEVELS, histogram
from spqt_ti.sparsity.search.histogram import quantiles as histogram_quantiles
from spqt_ti.sparsity.search.stored_layer import Mask

SiteWeights = Mapping[str, np.ndarray]  # site -> c, f32 [cols]; a site that is missing has none


def score(inputs: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """|x| * c, or |x|, f32 of the shape of `inputs`; as the kernels compute it."""
    magnitude = np.abs(inputs)
    if weight is not None:
        magnitude *= weight
    return magnitude


def quantiles(scores: np.ndarray) -> np.ndarray:
    """f32 [100]: the scores below which the shares LEVELS of them lie, to the width of a histogram's bin."""
    return histogram_quantiles(histogram(scores), LEVELS)


def thresholds_at(table: np.ndarray, sparsities: np.ndarray) -> np.ndarray:
    """Thresholds f32 [...] at sparsities f64 [...] from quantiles f32 [..., 100], linear between LEVELS; 0 where the
    sparsity is 0.
    """
    found = np.zeros(sparsities.shape, np.float32)
    for at in np.ndindex(sparsities.shape):
        if sparsities[at] > 0:
            found[at] = np.interp(sparsities[at], LEVELS, table[at])
    return found


def threshold_of_share(scores: np.ndarray, share: float) -> np.float32:
    """The score that the share `share` of `scores` does not exceed; 0, which skips nothing, where that is none."""
    count = int(share * scores.size)
    return np.partition(scores.reshape(-1), count - 1)[count - 1] if count else np.float32(0)


def threshold_mask(thresholds: np.ndarray, weights: SiteWeights | None = None) -> Mask:
    """The Mask of thresholds f32 [4]."""
    known = weights or {}

    def mask(site: str, inputs: np.ndarray) -> np.ndarray:
        t = thresholds[SITES.index(site)]
        return np.where(score(inputs, known.get(site)) > t, inputs, np.float32(0)) if t > 0 else inputs

    return mask
