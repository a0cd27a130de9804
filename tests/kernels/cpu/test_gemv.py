"""The zigzag GEMV: against float64 on the dequantised weights (tolerance: see q4_k_matrices)."""

import functools
import os
import subprocess
import sys

import needs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix, integer_matrix, make_matrix, random_fields, random_matrix

from spqt_ti.backend import available_threads, start
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q4_k
from spqt_ti.formats.layout import dequantize_matrix, quantize_matrix
from spqt_ti.kernels.cpu import gemv as module
from spqt_ti.kernels.cpu.gemv import ZigzagGemv
from spqt_ti.kernels.cpu.tile_sums import uses_integers
from spqt_ti.kernels.cpu.zigzag import ZigzagShape

SHAPES = [
    (1, 1),
    (1, 300),
    (300, 1),
    (33, 7),
    (256, 256),
    (257, 257),
    (960, 576),
    (192, 4095),
    (4096, 3),
    (6000, 40),
    (8500, 70),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
two_threads = pytest.mark.skipif(available_threads() < 2, reason="needs two CPUs")


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@pytest.fixture(scope="module", autouse=True)
def _compile_once():
    """One kernel per number of workers for the whole module: it serves every shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_gemv_kernel", functools.cache(module.make_gemv_kernel))
        yield


@pytest.fixture(params=[False, True], ids=["fast", "exact"])
def exact(request) -> bool:
    return request.param


def gemv_of(matrix: Matrix, exact: bool, workers: int | None = None) -> ZigzagGemv:
    return ZigzagGemv(matrix.data, ZigzagShape(*matrix.weights.shape), workers or min(2, available_threads()), exact)


def normal(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def choose(cols: int, count: int, seed: int = 2) -> np.ndarray:
    """`count` of `cols` columns, i32, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(cols)[:count]).astype(np.int32)


def allowed(matrix: Matrix, x: np.ndarray, exact: bool) -> np.ndarray:
    """Error per row, of a product in this process."""
    return matrix.tolerance(x) + (matrix.step_tolerance(x) if uses_integers(exact) else 0)


def check(matrix: Matrix, exact: bool, x: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
    y = gemv_of(matrix, exact)(x, active)
    kept = x if active is None else np.where(np.isin(np.arange(x.size), active), x, np.float32(0))
    assert y.dtype == np.float32
    assert y.shape == (len(matrix.weights),)
    assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= allowed(matrix, kept, exact)).all()
    return y


@shapes
def test_dense_equals_float64(shape, exact) -> None:
    check(random_matrix(*shape, "zigzag"), exact, normal(shape[1]))


def test_quantised_weights(exact) -> None:
    w = np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32)
    x = normal(64)
    y = ZigzagGemv(quantize_matrix(w, "zigzag", q4_k.SCHEME), ZigzagShape(300, 64), min(2, available_threads()), exact)(
        x
    )
    error = y - w.astype(np.float64) @ x
    assert np.sqrt(np.mean(error**2)) < 0.1 * np.linalg.norm(x)  # Q4_K's relative error on normal weights: 0.0715


@shapes
@pytest.mark.parametrize("density", [0.0, 0.35, 0.5, 1.0])
def test_sparse_equals_float64(shape, density, exact) -> None:
    active = choose(shape[1], round(density * shape[1]))
    y = check(random_matrix(*shape, "zigzag"), exact, normal(shape[1]), active)
    if active.size == 0:
        assert not y.any()


# Every number of 32-row sub-blocks in the last band, with one row or all rows of the last; alone and after a full band.
@pytest.mark.parametrize("full", [0, 256])
@pytest.mark.parametrize("rows", [r for n in range(8) for r in (32 * n + 1, 32 * n + 32)])
def test_every_tail(full, rows, exact) -> None:
    matrix = random_matrix(full + rows, 37, "zigzag", rows)
    check(matrix, exact, normal(37))
    check(matrix, exact, normal(37), choose(37, 17))


@shapes
def test_sparse_equals_dense_on_masked_x(shape, exact) -> None:
    cols = shape[1]
    matrix, x, active = random_matrix(*shape, "zigzag"), normal(cols), choose(cols, -(-cols // 2))
    masked = np.where(np.isin(np.arange(cols), active), x, np.float32(0))
    difference = np.abs(gemv_of(matrix, exact)(x, active) - gemv_of(matrix, exact)(masked))
    assert (difference <= 2 * allowed(matrix, masked, exact)).all()


@shapes
def test_all_columns_active_is_dense(shape, exact) -> None:
    matrix, x = random_matrix(*shape, "zigzag"), normal(shape[1])
    everything = np.arange(shape[1], dtype=np.int32)
    np.testing.assert_array_equal(gemv_of(matrix, exact)(x, everything), gemv_of(matrix, exact)(x))


def test_order_of_the_active_list(exact) -> None:
    matrix, x, active = random_matrix(700, 301, "zigzag"), normal(301), choose(301, 150)
    check(matrix, exact, x, active[::-1].copy())
    check(matrix, exact, x, np.random.default_rng(3).permutation(active))


@pytest.mark.parametrize("rows", [5, 64, 256, 300, 960])
@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 66, 127, 128, 129, 130, 300, 301])
def test_each_index_is_used_once(rows, count, exact) -> None:
    """Integer weights and x of ones: a column lost, read twice or taken for another changes an exact sum.

    The counts lie around the lengths of tiles, of one worker or of two. Scales of 1 are the worst for 16-bit
    products: a step is 1/500 of them.
    """
    matrix, active = integer_matrix(rows, 301, "zigzag"), choose(301, count)
    y = gemv_of(matrix, exact)(np.ones(301, np.float32), active)
    np.testing.assert_array_equal(np.rint(y), matrix.weights[:, active].sum(axis=1))
    np.testing.assert_allclose(y, np.rint(y), atol=2e-2)


def test_every_weight_in_its_place(exact) -> None:
    matrix = integer_matrix(300, 40, "zigzag")
    gemv = gemv_of(matrix, exact)
    ones = np.ones(40, np.float32)
    columns = [gemv(ones, np.array([j], np.int32)) for j in range(40)]
    np.testing.assert_allclose(np.stack(columns, axis=1), matrix.weights, atol=1e-3)


def test_inactive_inputs_are_not_read(exact) -> None:
    matrix, x, active = random_matrix(300, 40, "zigzag"), normal(40), choose(40, 20)
    expected = gemv_of(matrix, exact)(x, active)
    x[np.setdiff1d(np.arange(40), active)] = np.nan
    np.testing.assert_array_equal(gemv_of(matrix, exact)(x, active), expected)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [5, 256, 300, 1060])
@pytest.mark.parametrize("place", [0, 7, 39, 100])
def test_what_is_not_finite_reaches_every_product(rows, place, bad, exact) -> None:
    """One input among finite ones, before and after larger ones; 16-bit integers have no NaN of their own."""
    matrix, x = random_matrix(rows, 101, "zigzag"), normal(101)
    x[50] = 1e20
    x[place] = bad
    assert not np.isfinite(gemv_of(matrix, exact)(x)).any()


def test_denormal_super_scales(exact) -> None:
    fields = random_fields(80, np.random.default_rng(0))
    fields.d[:] = np.float16(6e-8)
    fields.dmin[:] = np.float16(3e-7)
    check(make_matrix(300, 40, "zigzag", fields), exact, normal(40))


@two_threads
@shapes
def test_workers_matter_by_rounding_only(shape, exact) -> None:
    cols = shape[1]
    matrix, x = random_matrix(*shape, "zigzag"), normal(cols)
    for active in (None, choose(cols, cols // 2)):
        difference = np.abs(gemv_of(matrix, exact, 1)(x, active) - gemv_of(matrix, exact, 2)(x, active))
        assert (difference <= 2 * allowed(matrix, x, exact)).all()


def test_repeats_are_identical(exact) -> None:
    matrix, x, active = random_matrix(960, 301, "zigzag"), normal(301), choose(301, 151)
    gemv = gemv_of(matrix, exact)
    first = gemv(x, active)
    for _ in range(20):
        gemv(normal(301, 2))
        np.testing.assert_array_equal(gemv(x, active), first)


def test_wrong_sizes() -> None:
    matrix = random_matrix(300, 40, "zigzag")
    with pytest.raises(QuantizationError, match="Q4_K matrix"):
        ZigzagGemv(matrix.data[:-1], ZigzagShape(300, 40))
    with pytest.raises(QuantizationError, match="Q4_K matrix"):
        ZigzagGemv(matrix.data, ZigzagShape(300, 41))


@pytest.mark.parametrize("column", [-1, 40, 2**31 - 1])
def test_columns_that_there_are_not(column: int) -> None:
    with pytest.raises(ValueError, match="active columns must be between 0 and 39"):
        gemv_of(random_matrix(300, 40, "zigzag"), True)(normal(40), np.array([3, column], np.int32))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 200), st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans())
def test_any_shape_and_density(rows, cols, density, seed, exact) -> None:
    active = choose(cols, round(density * cols), seed)
    check(random_matrix(rows, cols, "zigzag", seed), exact, normal(cols, seed), active)


SHAPES_OF_16_BITS = [(48, 576), (960, 576), (512, 1536)]  # the tail's loop, bands and a tail, bands alone


@needs.sixteen_bits
@pytest.mark.parametrize(
    ("shape", "outlier", "least", "most"),
    [
        *((shape, 1, 2.5e-5, 4.5e-5) for shape in SHAPES_OF_16_BITS),
        *((shape, 25_000, 5.5e-5, 9.5e-5) for shape in SHAPES_OF_16_BITS[:1]),
        *((shape, 25_000, 2.5e-5, 5.0e-5) for shape in SHAPES_OF_16_BITS[1:]),
    ],
    ids=str,
)
def test_error_of_16_bits(shape, outlier, least, most) -> None:
    """|y - W x| / |W x|, rms over inputs. Half the resolution doubles it; less than `least` is not 16 bits.

    Heavy tails: SmolLM2's down has an input of 25,000 times the median, and a step is a share of the largest of a
    tile: of 48 columns in the tail, of 8 or 12 in bands.
    """
    rows, cols = shape
    data = quantize_matrix(normal(rows * cols).reshape(shape), "zigzag", q4_k.SCHEME)
    weights = dequantize_matrix(data, rows, cols, "zigzag", q4_k.SCHEME).astype(np.float64)
    gemv = ZigzagGemv(data, ZigzagShape(rows, cols), min(2, available_threads()))
    errors = []
    for seed in range(12):
        x = normal(cols, seed)
        x[seed] = outlier * np.median(np.abs(x))
        expected = weights @ x
        errors.append(np.linalg.norm(gemv(x) - expected) / np.linalg.norm(expected))
    assert least < np.sqrt(np.mean(np.square(errors))) < most


def _print_products() -> None:
    """Run by test_without_native_helpers in a process of its own."""
    start("cpu")
    gemv = gemv_of(random_matrix(700, 301, "zigzag"), False)
    for active in (None, choose(301, 150)):
        sys.stdout.buffer.write(gemv(normal(301), active).tobytes())


@pytest.mark.parametrize("native", ["0", "fma"])
def test_without_native_helpers(native) -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy; runpy.run_path({__file__!r})['_print_products']()"
    env = {**os.environ, "SPQT_NATIVE": native}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    matrix, x = random_matrix(700, 301, "zigzag"), normal(301)
    plain = np.frombuffer(done.stdout, np.float32).reshape(2, -1)
    for y, active in zip(plain, (None, choose(301, 150)), strict=True):
        kept = x if active is None else np.where(np.isin(np.arange(x.size), active), x, np.float32(0))
        assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= matrix.tolerance(kept)).all()
