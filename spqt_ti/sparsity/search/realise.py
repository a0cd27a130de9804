"""The level at which a policy skips as many weights as it was asked to.

Thresholds come from a dense run, but every layer of a sparse one reads what the masks before it have left. So the share
that is skipped differs from the level; here the level is moved until it does not, on a sample of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.active_inputs import ActiveInputs
from spqt_ti.sparsity.policy import be_dense
from spqt_ti.sparsity.search.sample import spread

WINDOWS, WINDOW = 8, 256
CLOSE = 5e-4  # to the share asked for
_ROUNDS = 5

Weights = Mapping[tuple[int, str], np.ndarray]


def realised(llama: Llama, windows: Sequence[Sequence[int]], thresholds: np.ndarray, weights: Weights) -> float:
    """Share of the layers' weights that are skipped at thresholds f32 [layers, 4] on `windows`; dense afterwards."""
    active = ActiveInputs(llama)
    be_dense(llama)
    for (layer, site), weight in weights.items():
        llama.selectors.weigh(layer, site, weight)
    llama.thresholds[:] = thresholds
    for window in windows:
        llama.reset()
        llama.prefill(window, "none", masked=True, observer=active)
    be_dense(llama)
    llama.reset()
    return active.realised_sparsity


def realise(
    llama: Llama,
    tokens: Sequence[int],
    share: float,
    highest: float,
    thresholds_at_level: Callable[[float], np.ndarray],
    weights: Weights,
) -> float:
    """The level, 0 to `highest`, whose thresholds skip `share` of the weights on a sample of `tokens`, to CLOSE where
    five tries are enough.
    """
    if share == 0:
        return 0.0
    windows = spread(tokens, WINDOWS, min(WINDOW, llama.context))
    level, tried = share, {0.0: 0.0}
    for _ in range(_ROUNDS):
        tried[level] = realised(llama, windows, thresholds_at_level(level), weights)
        if abs(tried[level] - share) < CLOSE:
            break
        (a, at_a), (b, at_b) = sorted(tried.items(), key=lambda item: abs(item[1] - share))[:2]
        slope = (at_b - at_a) / (b - a)
        level = float(np.clip(a + (share - at_a) / slope if slope > 0 else a, 0.0, highest))
        if level in tried:
            break
    return min(tried, key=lambda level: abs(tried[level] - share))
