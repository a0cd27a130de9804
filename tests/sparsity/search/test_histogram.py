"""Quantiles of histograms as thresholds: close to NumPy's on smooth values, and never above all that was seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from spqt_ti.sparsity.search.histogram import BINS, TIED, histogram, quantiles

LEVELS = np.arange(100) / 100
ORDINARY = st.floats(2.0**-126, 2.0**100, width=32)
MAGNITUDES = st.one_of(st.just(0.0), st.sampled_from([0.5, 1.0, 1.001, 1.0039, 2.015625, 7.0]), ORDINARY)


def kept(values: np.ndarray) -> np.ndarray:
    """Thresholds f32 [100] at LEVELS as a calibration file has them: with 7 digits."""
    return np.array([float(f"{v:.7g}") for v in quantiles(histogram(values), LEVELS)], np.float32)


@pytest.mark.parametrize("draw", ["standard_normal", "exponential", "laplace"])
def test_smooth_values(draw) -> None:
    generator = np.random.default_rng(0)
    values = np.abs(getattr(generator, draw)(size=100_000)).astype(np.float32)
    expected = np.quantile(values, LEVELS[1:])
    np.testing.assert_allclose(quantiles(histogram(values), LEVELS[1:]), expected, rtol=4e-3)
    skipped = [(values <= t).mean() for t in kept(values)]
    np.testing.assert_allclose(skipped, LEVELS, atol=3e-4)


def test_counts_of_magnitudes() -> None:
    counts = histogram(np.array([[1.0, -1.0, 0.0], [-0.0, 2.0, 1.001]], np.float32))
    assert counts.shape == (BINS,)
    assert sorted(counts[counts > 0]) == [1, 2, 3]


@pytest.mark.parametrize("value", [1.0, 1.001, 0.5, 2.015625, 1e-30, 3e30, 65504.0])
def test_constants_are_not_skipped(value) -> None:
    assert (kept(np.full(1000, value)) < np.float32(value)).all()


def test_a_narrow_range_is_not_skipped_whole() -> None:
    values = np.linspace(1.0, 1.006, 1000).astype(np.float32)  # two bins
    for level, threshold in zip(LEVELS, kept(values), strict=True):
        assert (values <= threshold).mean() <= level


def test_ties_in_the_middle_are_kept_until_they_fit() -> None:
    """20 % below, 30 % equal, 50 % above: from 50 % on the equal ones go, before that none of them."""
    generator = np.random.default_rng(1)
    values = np.concatenate([generator.uniform(0.1, 0.9, 2000), np.ones(3000), generator.uniform(1.5, 9, 5000)])
    values = values.astype(np.float32)
    thresholds = kept(values)
    assert (thresholds[:50] < 1).all()
    assert (thresholds[51:] >= 1).all()


def test_few_ties_are_kept_until_they_fit() -> None:
    """One value in twenty is the same one, less than a level's bin of a narrow range would hide."""
    generator = np.random.default_rng(1)
    values = np.concatenate([generator.uniform(0.1, 1.4, 4800), np.full(500, 1.5), generator.uniform(1.6, 9, 4700)])
    assert (kept(values.astype(np.float32))[:53] < 1.5).all()


def test_zeros_are_skipped_where_there_is_more() -> None:
    """An inactive zero costs nothing and changes nothing; where all are zero there is no threshold."""
    half = np.concatenate([np.zeros(500), np.linspace(1, 2, 500)])
    assert (kept(half)[1:50] > 0).all()
    assert (kept(half)[1:50] < 1e-30).all()
    assert not kept(np.zeros(100)).any()


@given(arrays.arrays(np.float32, st.integers(1, 300), elements=MAGNITUDES, fill=MAGNITUDES))
def test_never_above_everything(values) -> None:
    """Also of a few values, whatever they are; and higher levels have no lower thresholds."""
    thresholds = kept(values)
    if values.any():
        assert (thresholds < values.max()).all()
    else:
        assert not thresholds.any()
    assert (np.diff(thresholds) >= 0).all()


@given(arrays.arrays(np.float32, st.integers(200, 2000), elements=MAGNITUDES, fill=MAGNITUDES), st.integers(0, 99))
def test_no_more_is_skipped_than_a_bin_beyond_the_level(values, place) -> None:
    """Zeros apart."""
    threshold = kept(values)[place]
    if threshold >= values[values > 0].min(initial=np.inf):
        assert (values <= threshold).mean() <= LEVELS[place] + TIED + 1e-9
