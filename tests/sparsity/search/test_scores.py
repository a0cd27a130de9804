"""Scores, their quantiles and masks: what does not depend on where the inputs come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.sparsity.methods.uniform import LEVELS
from spqt_ti.sparsity.search.scores import quantiles, score, threshold_mask, threshold_of_share, thresholds_at

INPUTS = np.random.default_rng(0).standard_normal((3, 40, 50)).astype(np.float32)
WEIGHT = np.random.default_rng(1).uniform(0.1, 4, 50).astype(np.float32)


def mask_at(sparsity: float, weight: np.ndarray) -> np.ndarray:
    threshold = threshold_of_share(score(INPUTS, weight), sparsity)
    return threshold_mask(np.full(4, threshold), {"o": weight})("o", INPUTS)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.93])
def test_share_that_is_skipped(share: float) -> None:
    assert np.count_nonzero(mask_at(share, WEIGHT) == 0) == int(share * INPUTS.size)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_quantiles_are_the_same_to_the_width_of_a_bin(share: float) -> None:
    scores = score(INPUTS, WEIGHT)
    found = thresholds_at(quantiles(scores)[None], np.array([share]))
    assert found[0] == pytest.approx(threshold_of_share(scores, share), rel=8e-3)


def test_what_is_kept_is_unchanged_and_scores_highest() -> None:
    masked, scores = mask_at(0.5, WEIGHT), np.abs(INPUTS) * WEIGHT
    np.testing.assert_array_equal(masked[masked != 0], INPUTS[masked != 0])
    assert scores[masked != 0].min() > scores[masked == 0].max()


@given(st.integers(-20, 20))
def test_a_factor_of_all_weights_changes_nothing(exponent: int) -> None:
    """A power of two, so that no product is rounded differently."""
    np.testing.assert_array_equal(mask_at(0.5, WEIGHT * np.float32(2.0**exponent)), mask_at(0.5, WEIGHT))


@given(st.floats(1e-3, 1e3))
def test_any_factor_changes_nothing_but_rounding(factor: float) -> None:
    differ = (mask_at(0.5, WEIGHT * np.float32(factor)) != 0) != (mask_at(0.5, WEIGHT) != 0)
    assert np.count_nonzero(differ) <= 2  # one flips either way


def test_weights_of_one_are_no_weights() -> None:
    np.testing.assert_array_equal(score(INPUTS, np.ones(50, np.float32)), score(INPUTS, None))


def test_scores_leave_the_inputs_alone() -> None:
    before = INPUTS.copy()
    score(INPUTS, WEIGHT)
    np.testing.assert_array_equal(INPUTS, before)


def test_thresholds_between_levels() -> None:
    table = np.tile(np.arange(100, dtype=np.float32), (2, 4, 1))
    sparsities = np.array([[0, 0.005, 0.5, 0.985], [0.01, 0.02, 0.255, 0.99]])
    np.testing.assert_allclose(thresholds_at(table, sparsities), 100 * sparsities, rtol=1e-5)
    assert len(LEVELS) == table.shape[-1]


def test_dense_is_dense() -> None:
    assert threshold_mask(np.zeros(4, np.float32))("qkv", INPUTS) is INPUTS
