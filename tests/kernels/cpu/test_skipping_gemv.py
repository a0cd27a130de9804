"""B2, the zigzag GEMV that skips on the fly: the same products as the full one, of the inputs above a threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import random_matrix

from spqt_ti.backend import available_threads, start
from spqt_ti.kernels.cpu.skipping_gemv import SkippingGemv
from spqt_ti.kernels.cpu.tile_sums import uses_integers
from spqt_ti.kernels.cpu.zigzag import ZigzagShape

WORKERS = min(2, available_threads())


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


def check(rows: int, cols: int, threshold: float, x: np.ndarray, exact: bool = False) -> None:
    matrix = random_matrix(rows, cols, "zigzag")
    y = SkippingGemv(matrix.data, ZigzagShape(rows, cols), WORKERS, exact)(x, threshold)
    kept = np.where(np.abs(x) > threshold, x, np.float32(0))
    allowed = matrix.tolerance(kept) + (matrix.step_tolerance(kept) if uses_integers(exact) else 0)
    assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= allowed).all()


def normal(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (300, 40), (960, 576), (2900, 65)], ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.6745, 100.0])
def test_equals_float64_on_masked_x(shape, threshold, exact) -> None:
    check(*shape, threshold, normal(shape[1]), exact)


def test_an_input_equal_to_the_threshold_is_inactive() -> None:
    x = np.repeat(np.float32([0.5, -0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.0]), 10)
    check(300, 40, 0.5, x)


def test_wrong_size() -> None:
    matrix = random_matrix(300, 40, "zigzag")
    with pytest.raises(ValueError, match="does not fit 40 columns"):
        SkippingGemv(matrix.data, ZigzagShape(300, 40), WORKERS)(normal(41), 0.5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600), st.integers(1, 200), st.floats(0, 3, width=32), st.integers(0, 2**32 - 1))
def test_any_shape_and_threshold(rows, cols, threshold, seed) -> None:
    check(rows, cols, threshold, normal(cols, seed))
