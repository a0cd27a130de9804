"""The GEMV on the row layout: against float64 on the dequantised weights (tolerances: see q4_k_matrices and below)."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix, integer_matrix, make_matrix, random_fields, random_matrix

from spqt_ti.backend import available_threads, start
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q4_k
from spqt_ti.formats.layout import quantize_matrix
from spqt_ti.kernels.cpu.row_gemv import RowGemv
from spqt_ti.kernels.cpu.tile_sums import uses_integers

SHAPES = [(1, 1), (1, 300), (300, 1), (33, 7), (300, 50), (256, 256), (257, 257), (960, 576), (3, 4096), (2, 511)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_loop = pytest.mark.parametrize("exact", [True, False], ids=["f32", "16 bits"])
two_threads = pytest.mark.skipif(available_threads() < 2, reason="needs two CPUs")


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


def workers() -> int:
    return min(2, available_threads())


def gemv_of(matrix: Matrix, count: int | None = None, exact: bool = False) -> RowGemv:
    return RowGemv(matrix.data, *matrix.weights.shape, workers=count or workers(), exact=exact)


def normal(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def rounding_tolerance(matrix: Matrix, x: np.ndarray) -> np.ndarray:
    """Allowed error per row where x is rounded to steps of 1/32639 of the largest of 32 inputs.

    An input is off by half a step at most, so their sum by six standard deviations (step / sqrt 12 each) times the
    norm of the weights. The parts of a weight that cancel (d scale q against dmin min) are rounded alike.
    """
    padded = np.pad(np.abs(x.astype(np.float64)), (0, -x.size % 32)).reshape(-1, 32)
    steps = np.repeat(padded.max(axis=1) / 32639, 32)[: x.size]
    return 6 / np.sqrt(12) * np.sqrt(matrix.weights**2 @ steps**2)


def check(matrix: Matrix, x: np.ndarray, threshold: float | None = None, exact: bool = False) -> None:
    y = gemv_of(matrix, exact=exact)(x, threshold)
    kept = x if threshold is None else np.where(np.abs(x) > np.float32(threshold), x, np.float32(0))
    assert y.dtype == np.float32
    assert y.shape == (len(matrix.weights),)
    allowed = matrix.tolerance(kept) + (rounding_tolerance(matrix, kept) if uses_integers(exact) else 0)
    assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= allowed).all()


@shapes
@each_loop
def test_equals_float64(shape, exact) -> None:
    check(random_matrix(*shape, "row"), normal(shape[1]), exact=exact)


@pytest.mark.skipif(not uses_integers(False), reason="this CPU has no AVX2, or SPQT_NATIVE forbids it")
@pytest.mark.parametrize(("outlier", "measured"), [(1.0, 2.1e-5), (25000.0, 5.2e-5)])
def test_error_of_16_bits(outlier, measured) -> None:
    """Pinned, so that half of the resolution does not survive; 25,000 times the median occurs in SmolLM2's down."""
    w = np.random.default_rng(0).standard_normal((512, 1536), dtype=np.float32)
    matrix = RowGemv(quantize_matrix(w, "row", q4_k.SCHEME), 512, 1536, workers())
    exact = RowGemv(quantize_matrix(w, "row", q4_k.SCHEME), 512, 1536, workers(), exact=True)
    x = normal(1536)
    x[700] *= outlier
    error, expected = matrix(x).astype(np.float64) - exact(x), exact(x)
    relative = np.sqrt(np.mean(error**2) / np.mean(expected.astype(np.float64) ** 2))
    assert 0.5 * measured < relative < 1.3 * measured


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_loop
def test_what_is_not_a_number_stays_so(bad, exact) -> None:
    x = normal(700)
    x[300] = bad
    assert not np.isfinite(gemv_of(random_matrix(20, 700, "row"), exact=exact)(x)).any()


def test_quantised_weights() -> None:
    w = np.random.default_rng(0).standard_normal((64, 300), dtype=np.float32)
    x = normal(300)
    y = RowGemv(quantize_matrix(w, "row", q4_k.SCHEME), 64, 300, workers())(x)
    error = y - w.astype(np.float64) @ x
    assert np.sqrt(np.mean(error**2)) < 0.1 * np.linalg.norm(x)  # Q4_K's relative error on normal weights: 0.0715


@shapes
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.5, 100.0])
@each_loop
def test_threshold_zeroes_inputs(shape, threshold, exact) -> None:
    check(random_matrix(*shape, "row"), normal(shape[1]), threshold, exact)


def test_threshold_equal_to_inputs() -> None:
    check(random_matrix(20, 300, "row"), np.resize(np.float32([0.5, -0.5, 0.75, -0.0, 2.0]), 300), 0.5)


def test_threshold_leaves_nan_out() -> None:
    x = normal(300)
    matrix = random_matrix(20, 300, "row")
    expected = gemv_of(matrix)(np.where(np.arange(300) == 7, np.float32(0), x), 0.1)
    x[7] = np.nan
    np.testing.assert_array_equal(gemv_of(matrix)(x, 0.1), expected)


@pytest.mark.parametrize("active", [[], [0], [255], [256], [299], [31, 32], list(range(64, 128))], ids=str)
def test_skipped_vectors(active) -> None:
    """All but a few inputs are zero, so most vectors of weights are skipped; the sums are exact."""
    matrix = integer_matrix(20, 300, "row")
    x = np.zeros(300, np.float32)
    x[active] = 1
    np.testing.assert_array_equal(gemv_of(matrix, exact=True)(x, 0.5), matrix.weights @ x)


def test_threshold_zero_is_dense() -> None:
    matrix, x = random_matrix(40, 700, "row"), normal(700)
    np.testing.assert_array_equal(gemv_of(matrix)(x, 0.0), gemv_of(matrix)(x))


def test_every_weight_in_its_place() -> None:
    matrix = integer_matrix(5, 300, "row")
    gemv = gemv_of(matrix, exact=True)
    columns = [gemv(unit) for unit in np.eye(300, dtype=np.float32)]
    np.testing.assert_array_equal(np.stack(columns, axis=1), matrix.weights)


def test_padding_is_ignored() -> None:
    """The weights that pad a row to a multiple of 256 are not zero here, and x of an earlier call leaves nothing."""
    matrix = integer_matrix(5, 257, "row")
    gemv = gemv_of(matrix, exact=True)
    for x in (np.ones(257, np.float32), np.zeros(257, np.float32)):
        np.testing.assert_array_equal(gemv(x), matrix.weights @ x)


def test_denormal_super_scales() -> None:
    fields = random_fields(40, np.random.default_rng(0))
    fields.d[:] = np.float16(6e-8)
    fields.dmin[:] = np.float16(3e-7)
    check(make_matrix(20, 300, "row", fields), normal(300))


@two_threads
@shapes
def test_workers_do_not_matter(shape) -> None:
    """A row is summed by one worker: not even rounding differs."""
    matrix, x = random_matrix(*shape, "row"), normal(shape[1])
    np.testing.assert_array_equal(gemv_of(matrix, 1)(x), gemv_of(matrix, 2)(x))
    np.testing.assert_array_equal(gemv_of(matrix, 1)(x, 0.7), gemv_of(matrix, 2)(x, 0.7))


def test_repeats_are_identical() -> None:
    matrix, x = random_matrix(300, 700, "row"), normal(700)
    gemv = gemv_of(matrix)
    first = gemv(x)
    for _ in range(20):
        gemv(normal(700, 2), 0.3)
        np.testing.assert_array_equal(gemv(x), first)


def test_wrong_sizes() -> None:
    matrix = random_matrix(3, 300, "row")
    with pytest.raises(QuantizationError, match="uint8"):
        RowGemv(matrix.data[:-1], 3, 300)
    with pytest.raises(QuantizationError, match="uint8"):
        RowGemv(matrix.data, 3, 600)
    gemv = gemv_of(matrix)
    for size in (0, 299, 301):
        with pytest.raises(ValueError, match="inputs"):
            gemv(normal(size))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 800),
    st.one_of(st.none(), st.floats(0, 3, width=32)),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_shape(rows, cols, threshold, exact, seed) -> None:
    check(random_matrix(rows, cols, "row", seed), normal(cols, seed), threshold, exact)


def _print_product() -> None:
    """Run by test_without_native_helpers in a process of its own."""
    start("cpu")
    sys.stdout.buffer.write(gemv_of(random_matrix(300, 700, "row"))(normal(700)).tobytes())


def test_without_native_helpers() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy; runpy.run_path({__file__!r})['_print_product']()"
    env = {**os.environ, "SPQT_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    matrix, x = random_matrix(300, 700, "row"), normal(700)
    plain = np.frombuffer(done.stdout, np.float32)
    assert (np.abs(plain - gemv_of(matrix, exact=True)(x)) <= matrix.tolerance(x)).all()
