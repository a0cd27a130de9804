"""Masked evaluation is decoding: the same logits, the same active inputs, where no input lies near its threshold."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers
from gap_thresholds import inputs_of, open_thresholds

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.methods.wina import column_norms

TOKENS = np.random.default_rng(3).integers(0, 300, 24).tolist()
TOLERANCE = 1e-5  # of the largest logit: f32 rounding; measured 1e-6


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", ["gqa", "narrow_heads+biases"])
def test_masked_logits_are_decoded_logits(case: str, weighted: bool) -> None:
    model = tiny_containers.llama(case)
    weights = column_norms(tiny_containers.container(case)) if weighted else None
    assert open_thresholds(model, TOKENS, weights) > 1e-4
    masked = model.prefill(TOKENS, "all", masked=True)
    model.reset()
    dense = model.prefill(TOKENS, "all")
    model.reset()
    decoded, active = [], []
    for token in TOKENS:
        decoded.append(model.decode(token).copy())
        active.append(model.active.copy())
    np.testing.assert_allclose(masked, decoded, rtol=0, atol=TOLERANCE * np.abs(masked).max())
    assert np.abs(masked - dense).max() > 0.1 * np.abs(dense).max()  # the selectors do something
    for layer, place in np.ndindex(active[0].shape):
        expected = np.count_nonzero(inputs_of(model, TOKENS, layer, SITES[place]), axis=1)
        np.testing.assert_array_equal([counts[layer, place] for counts in active], expected)
    model.selectors.clear()
