"""The collector on GPUs: exact sets, in ascending order or in segments."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.kernels.simt.collect import SEGMENT, Collector

SIZES = [1, 576, 1024, 4095]


@functools.cache
def collector(cols: int, ordered: bool) -> Collector:
    return Collector(cols, ordered)


@pytest.fixture(params=[True, False], ids=["ordered", "reserving"])
def ordered(request: pytest.FixtureRequest) -> bool:
    return request.param


def check(ordered: bool, x: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> np.ndarray:
    got = collector(x.size, ordered)(x, threshold, weights)
    scores = np.abs(x) if weights is None else np.abs(x) * weights
    expected = np.flatnonzero(scores > np.float32(threshold))
    np.testing.assert_array_equal(got if ordered else np.sort(got), expected)
    for segment in np.split(got, 1 + np.flatnonzero(np.diff(got // SEGMENT))):
        assert (np.diff(segment) > 0).all()
    return got


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("threshold", [0.0, 0.6745, 100.0])
def test_sizes(ordered: bool, size: int, threshold: float) -> None:
    check(ordered, normal(size), threshold)


def test_edges(ordered: bool) -> None:
    """Equal to the threshold, NaN, zeros and infinities."""
    above = np.nextafter(np.float32(0.5), np.float32(1))
    x = np.resize(np.float32([0.5, -0.5, above, -above, np.nan, 0.0, -0.0, np.inf, -np.inf]), 576)
    for threshold in (0.0, 0.5):
        check(ordered, x, threshold)


def test_one_active_in_every_place() -> None:
    for place in (0, 1, 511, 512, 1023, 1024, 2047, 4094):
        x = np.zeros(4095, np.float32)
        x[place] = -1
        np.testing.assert_array_equal(collector(4095, True)(x, 0.5), [place])
        np.testing.assert_array_equal(collector(4095, False)(x, 0.5), [place])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SIZES), st.floats(0, 3, width=32), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_any_threshold_and_weights(size: int, threshold: float, ordered: bool, weighted: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.choice(np.float32([0, 0.5, 1, 3]), size) if weighted else None
    check(ordered, normal(size, seed), threshold, weights)


def test_repeats_are_identical() -> None:
    x = normal(4095)
    first = collector(4095, True)(x, 0.3)
    for _ in range(10):
        np.testing.assert_array_equal(collector(4095, True)(x, 0.3), first)
