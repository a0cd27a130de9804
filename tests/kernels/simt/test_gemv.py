"""The GEMVs on GPUs against float64 on the dequantised weights (tolerance: see q4_k_matrices)."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix, integer_matrix, random_matrix

from spqt_ti.errors import QuantizationError
from spqt_ti.kernels.simt.division import Division
from spqt_ti.kernels.simt.gemv import ZigzagGemv
from spqt_ti.kernels.simt.row_gemv import RowGemv
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.zigzag import ZigzagWords

# Every length of the last band's superblocks, alone and after whole bands.
SHAPES = [(1, 1), (33, 7), (96, 130), (160, 40), (256, 256), (960, 576), (300, 301), (192, 4095)]


@functools.cache
def matrix_of(rows: int, cols: int) -> Matrix:
    return random_matrix(rows, cols, "zigzag")


@functools.cache
def gemv_of(rows: int, cols: int, division: Division | None = None, on_the_fly: bool = False) -> ZigzagGemv:
    return ZigzagGemv(matrix_of(rows, cols).data, ZigzagWords(rows, cols), division, on_the_fly)


def normal(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def choose(cols: int, count: int, seed: int = 2) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(cols)[:count]).astype(np.int32)


def kept(x: np.ndarray, active: np.ndarray) -> np.ndarray:
    """x with zeros for what is not active."""
    return np.where(np.isin(np.arange(x.size), active), x, np.float32(0))


def assert_product(y: np.ndarray, matrix: Matrix, x: np.ndarray) -> None:
    assert y.dtype == np.float32
    assert y.shape == (len(matrix.weights),)
    assert (np.abs(y - matrix.weights @ x.astype(np.float64)) <= matrix.tolerance(x)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_and_sparse(shape: tuple[int, int]) -> None:
    matrix, x = matrix_of(*shape), normal(shape[1])
    assert_product(gemv_of(*shape)(x), matrix, x)
    for density in (0.0, 0.35, 0.5, 1.0):
        active = choose(shape[1], round(density * shape[1]))
        y = gemv_of(*shape)(x, active)
        assert_product(y, matrix, kept(x, active))
        if active.size == shape[1]:
            np.testing.assert_array_equal(y, gemv_of(*shape)(x))


@pytest.mark.parametrize("division", [(1, 1), (1, 4), (4, 2), (3, 8), (32, 2)], ids=str)
def test_divisions_matter_by_rounding_only(division: tuple[int, int]) -> None:
    matrix, x, active = matrix_of(300, 301), normal(301), choose(301, 150)
    assert_product(gemv_of(300, 301, Division(*division))(x), matrix, x)
    assert_product(gemv_of(300, 301, Division(*division))(x, active), matrix, kept(x, active))


def test_one_matrix_in_several_ways() -> None:
    """Its weights lie in memory once; each has sums of its own."""
    matrix, x = matrix_of(300, 301), normal(301)
    first, other = gemv_of(300, 301), gemv_of(300, 301).with_division(Division(4, 2))
    assert other.arrays["quants"] is first.arrays["quants"]
    other.load(x)
    assert_product(other.run(other.launch_full(threshold=0.5)), matrix, np.where(np.abs(x) > 0.5, x, np.float32(0)))
    assert_product(other(x), matrix, x)
    assert_product(first(x), matrix, x)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 301), st.integers(0, 2**32 - 1))
def test_each_index_is_used_once(count: int, seed: int) -> None:
    """Integer weights and x of ones: a column lost, read twice or taken for another changes an exact sum."""
    matrix, gemv = integer_gemv()
    active = np.random.default_rng(seed).permutation(301)[:count].astype(np.int32)
    np.testing.assert_array_equal(gemv(np.ones(301, np.float32), active), matrix.weights[:, active].sum(axis=1))


@functools.cache
def integer_gemv() -> tuple[Matrix, ZigzagGemv]:
    matrix = integer_matrix(300, 301, "zigzag")
    return matrix, ZigzagGemv(matrix.data, ZigzagWords(300, 301))


def test_every_weight_in_its_place() -> None:
    matrix, gemv = integer_gemv()
    ones = np.ones(301, np.float32)
    for column in (0, 1, 150, 300):
        np.testing.assert_array_equal(gemv(ones, np.array([column], np.int32)), matrix.weights[:, column])


def test_inactive_inputs_are_not_read() -> None:
    x, active = normal(301), choose(301, 150)
    expected = gemv_of(300, 301)(x, active)
    x[np.setdiff1d(np.arange(301), active)] = np.nan
    np.testing.assert_array_equal(gemv_of(300, 301)(x, active), expected)


def test_repeats_are_identical() -> None:
    gemv, x, active = gemv_of(960, 576), normal(576), choose(576, 288)
    first = gemv(x, active)
    for _ in range(10):
        gemv(normal(576, 2))
        np.testing.assert_array_equal(gemv(x, active), first)


@pytest.mark.parametrize("threshold", [0.0, 0.6745, 100.0])
def test_skipping_on_the_fly(threshold: float) -> None:
    x = normal(301)
    x[::7] = 0.6745  # equal to a threshold: inactive
    y = gemv_of(300, 301, on_the_fly=True)(x, threshold=threshold)
    assert_product(y, matrix_of(300, 301), np.where(np.abs(x) > np.float32(threshold), x, np.float32(0)))


@pytest.mark.parametrize("threshold", [0.0, 0.6745, 100.0])
@pytest.mark.parametrize("shape", [(300, 130), (960, 576), (192, 4095)], ids=["1 segment", "3 segments", "16 segments"])
def test_full(shape: tuple[int, int], threshold: float) -> None:
    """Collection and product in one launch, with the number of active inputs on the device."""
    gemv, x = gemv_of(*shape), normal(shape[1])
    gemv.load(x)
    y = gemv.run(gemv.launch_full(threshold=threshold))
    assert_product(y, matrix_of(*shape), np.where(np.abs(x) > np.float32(threshold), x, np.float32(0)))


def test_copies_of_a_matrix() -> None:
    gemv = ZigzagGemv(matrix_of(300, 301).data, ZigzagWords(300, 301), copies=2)
    x = normal(301)
    expected = gemv(x)
    np.testing.assert_array_equal(gemv.run(gemv.launch(copy=1)), expected)


@pytest.mark.parametrize("shape", [(1, 1), (33, 300), (64, 576)], ids=str)
def test_row_layout(shape: tuple[int, int]) -> None:
    matrix, x = random_matrix(*shape, "row"), normal(shape[1])
    assert_product(RowGemv(matrix.data, RowWords(*shape))(x), matrix, x)
    naive = RowGemv(matrix.data, RowWords(*shape), skips=True)
    for threshold in (0.0, 0.6745):
        assert_product(naive(x, threshold), matrix, np.where(np.abs(x) > threshold, x, np.float32(0)))


def test_too_many_simdgroups() -> None:
    with pytest.raises(ValueError, match="the sums of 16 simdgroups do not fit"):
        ZigzagGemv(matrix_of(300, 301).data, ZigzagWords(300, 301), Division(1, 16))(normal(301))


def test_wrong_sizes() -> None:
    with pytest.raises(QuantizationError, match="uint8"):
        ZigzagGemv(matrix_of(300, 301).data[:-1], ZigzagWords(300, 301))
    with pytest.raises(ValueError, match="does not fit 301 columns"):
        gemv_of(300, 301)(normal(300))
