"""One list of kernel cases for every engine (pytest --backend), through the drivers that choose the kernels.

What is particular to an engine is tested in cpu/ and simt/.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix
from scheme_matrices import random_matrix

from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.kernels import drivers

pytestmark = pytest.mark.any_backend

COLS = 576
# On GPUs each is a kernel to compile: the other schemes have one shape, odd in every way.
CASES = [("q4_k", (256, 256)), ("q4_k", (960, COLS)), *((name, (300, 301)) for name in SCHEMES)]
cases = pytest.mark.parametrize(("scheme", "shape"), CASES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _runtime(backend_name: str) -> None:
    """The backend, started."""


@functools.cache
def gemv(scheme: str, rows: int, cols: int) -> tuple[Matrix, drivers.Gemv]:
    matrix = random_matrix(rows, cols, "zigzag", SCHEMES[scheme])
    return matrix, drivers.zigzag_gemv(matrix.data, rows, cols, scheme=SCHEMES[scheme])


@functools.cache
def collector() -> drivers.Collector:
    return drivers.collector(COLS)


def normal(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("density", [0.0, 0.35, 0.5, 0.75, 1.0, None])
@cases
def test_gemv(scheme: str, shape: tuple[int, int], density: float | None) -> None:
    """Over the active inputs only, or densely: float64 on the dequantised weights."""
    matrix, multiply = gemv(scheme, *shape)
    x, active = normal(shape[1]), None
    if density is not None:
        active = np.sort(np.random.default_rng(2).permutation(shape[1])[: round(density * shape[1])]).astype(np.int32)
    y = multiply(x, active)
    kept = x if active is None else np.where(np.isin(np.arange(x.size), active), x, np.float32(0))
    assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= matrix.tolerance(kept)).all()


@functools.cache
def row_gemv(scheme: str, rows: int, cols: int) -> tuple[Matrix, drivers.ThresholdGemv]:
    matrix = random_matrix(rows, cols, "row", SCHEMES[scheme])
    return matrix, drivers.row_threshold_gemv(matrix.data, rows, cols, scheme=SCHEMES[scheme])


@pytest.mark.parametrize("threshold", [None, 0.0, 0.7, 9.0])
@cases
def test_row_gemv(scheme: str, shape: tuple[int, int], threshold: float | None) -> None:
    """In the row layout: over the inputs above the threshold only, or densely."""
    matrix, multiply = row_gemv(scheme, *shape)
    x = normal(shape[1])
    kept = x if threshold is None else np.where(np.abs(x) > np.float32(threshold), x, np.float32(0))
    assert (np.abs(multiply(x, threshold) - matrix.weights @ kept.astype(np.float64)) <= matrix.tolerance(kept)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 4, width=32))
def test_collector(seed: int, threshold: float) -> None:
    """Exactly the inputs above the threshold, ascending; equal ones and NaN are not."""
    x = normal(COLS, seed)
    x[::7], x[1::7] = threshold, np.nan
    expected = np.flatnonzero(np.abs(x) > np.float32(threshold))
    np.testing.assert_array_equal(collector()(x, threshold), expected)
