"""The public kernels on NumPy arrays, on every backend: float64 on the dequantised weights."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix, make_matrix

from spqt_ti import ops
from spqt_ti.errors import OperandError, QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k
from spqt_ti.formats.schemes import SCHEMES

pytestmark = pytest.mark.any_backend

SHAPES = [(1, 1), (33, 7), (300, 301), (960, 576), (5, 1000)]


@pytest.fixture(scope="module", autouse=True)
def _runtime(backend_name: str) -> None:
    """The session's backend, started: `ops` takes the one that is up."""


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def packed(shape: tuple[int, int], layout: str) -> tuple[ops.PackedMatrix, Matrix]:
    """A matrix of normal weights, and what is known of its stored bytes."""
    matrix = ops.pack(normal(shape, 1), layout=layout)
    superblocks = layouts.superblocks(matrix.data, *shape, layout, q4_k.SCHEME)
    return matrix, make_matrix(*shape, layout, q4_k.unpack(superblocks))


def error_of(y: np.ndarray, matrix: Matrix, x: np.ndarray) -> np.ndarray:
    assert y.dtype == np.float32
    return np.abs(y - matrix.weights @ x.astype(np.float64))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack(shape: tuple[int, int], layout: str) -> None:
    """The reference quantiser's bytes, which are ggml's; a view's too."""
    w = normal((shape[1], shape[0]), 2).T
    matrix = ops.pack(w, layout=layout)
    np.testing.assert_array_equal(matrix.data, layouts.quantize_matrix(np.ascontiguousarray(w), layout, q4_k.SCHEME))
    assert (matrix.rows, matrix.cols, matrix.scheme, matrix.layout) == (*shape, "q4_k", layout)
    # Half a step of 1 / 15 of a sub-block's range, which is at most 2 max |w|, and the rounding of scales.
    assert np.abs(matrix.dequantize() - w).max() <= np.abs(w).max() / 15 * 1.1


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gemv(shape: tuple[int, int], layout: str, exact: bool) -> None:
    matrix, known = packed(shape, layout)
    x = normal(shape[1:], 3)
    allowed = known.tolerance(x) if exact else known.tolerance(x) + known.step_tolerance(x)
    assert (error_of(ops.gemv(matrix, x, exact=exact), known, x) <= allowed).all()


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme: str, layout: str) -> None:
    w, x = normal((300, 301), 6), normal((301,), 7)
    matrix = ops.pack(w, scheme=scheme, layout=layout)
    stored = matrix.dequantize().astype(np.float64)
    kept = np.where(np.abs(x) > np.float32(0.5), x, np.float32(0)).astype(np.float64)
    for y, expected in (
        (ops.gemv(matrix, x, exact=True), stored @ x),
        (ops.sparse_gemv(matrix, x, 0.5, exact=True), stored @ kept),
    ):
        assert np.linalg.norm(y - expected) < 3e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0, 4, width=32))
def test_sparse_gemv(layout: str, seed: int, threshold: float) -> None:
    """Only |x_i| > threshold counts: an input that equals it does not."""
    matrix, known = packed((300, 301), layout)
    x = normal((301,), seed)
    x[::7] = threshold
    kept = np.where(np.abs(x) > np.float32(threshold), x, np.float32(0))
    y = ops.sparse_gemv(matrix, x, threshold, exact=True)
    assert (error_of(y, known, kept) <= known.tolerance(kept)).all()


def test_threshold_of_zero_is_the_dense_product() -> None:
    matrix, _ = packed((960, 576), "zigzag")
    x = normal((576,), 4)
    np.testing.assert_array_equal(ops.sparse_gemv(matrix, x, 0.0), ops.gemv(matrix, x))


def test_stored_bytes_make_the_same_matrix() -> None:
    matrix, _ = packed((300, 301), "zigzag")
    again = ops.PackedMatrix(matrix.data.copy(), 300, 301)
    x = normal((301,), 5)
    np.testing.assert_array_equal(ops.gemv(again, x), ops.gemv(matrix, x))
    assert "data" not in repr(again)


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        (np.zeros((2, 3)), {}, "float32"),
        (np.zeros(3, np.float32), {}, "rows, cols"),
        (np.zeros((0, 3), np.float32), {}, "at least one row"),
        (np.full((1, 1), np.nan, np.float32), {}, "NaN"),
        (np.zeros((2, 3), np.float32), {"scheme": "q4_9"}, "unknown scheme 'q4_9'.*q4_k"),
        (np.zeros((2, 3), np.float32), {"layout": "diagonal"}, "unknown layout"),
    ],
)
def test_what_cannot_be_packed(w: np.ndarray, options: dict[str, str], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        ops.pack(w, **options)


@pytest.mark.parametrize(
    ("x", "threshold", "message"),
    [
        (np.zeros(300, np.float32), 0.0, r"float32 \[301\], not float32 \[300\]"),
        (np.zeros((301, 1), np.float32), 0.0, r"not float32 \[301, 1\]"),
        (np.zeros(301), 0.0, "not float64"),
        (np.where(np.arange(301) == 7, np.float32(np.inf), np.float32(1)), 0.0, "at 7"),
        (np.zeros(301, np.float32), -1.0, "threshold"),
        (np.zeros(301, np.float32), float("nan"), "threshold"),
    ],
)
def test_operands_that_do_not_fit(x: np.ndarray, threshold: float, message: str) -> None:
    matrix, _ = packed((300, 301), "zigzag")
    with pytest.raises(OperandError, match=message):
        ops.sparse_gemv(matrix, x, threshold)


def test_bytes_of_another_size() -> None:
    with pytest.raises(QuantizationError, match=r"\[300, 301\]"):
        ops.PackedMatrix(np.zeros(3, np.uint8), 300, 301)


def test_starts_the_backend_on_its_own() -> None:
    program = (
        "import numpy as np; from spqt_ti import ops\n"
        "w = np.eye(40, 30, dtype=np.float32)\n"
        "print(ops.sparse_gemv(ops.pack(w), np.ones(30, np.float32), 0.5).shape)"
    )
    environment = {**os.environ, "SPQT_BACKEND": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "(40,)", done.stderr
