"""Row-layout kernels of each scheme: one token, and prefill's product for many, against float64."""

import functools

import numpy as np
import pytest
from device_vectors import download, upload
from hypothesis import given, settings
from hypothesis import strategies as st
from scheme_matrices import random_matrix

from spqt_ti.backend import available_threads, start, ti
from spqt_ti.formats import layout, schemes
from spqt_ti.kernels.cpu.row_gemv import RowGemv
from spqt_ti.kernels.cpu.row_layout import RowMatrix, row_superblocks, unpack
from spqt_ti.kernels.cpu.row_matmul import ROW_TILE_VECTORS, make_row_matmul
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.kernels.cpu.tokens import Tokens
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, u32x4, u32x16, vectors_for

SHAPES = [(1, 1), (33, 7), (7, 300), (300, 256), (65, 257), (576, 576), (130, 1000)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
names = pytest.mark.parametrize("name", list(schemes.SCHEMES))
WORKERS = min(2, available_threads())


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def check(name: str, rows: int, cols: int, threshold: float | None, x: np.ndarray, seed: int = 0) -> None:
    matrix = random_matrix(rows, cols, "row", schemes.find(name), seed)
    y = RowGemv(matrix.data, rows, cols, WORKERS, exact=True, decoder=decoder_of(schemes.find(name)))(x, threshold)
    kept = x if threshold is None else np.where(np.abs(x) > threshold, x, np.float32(0))
    assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= matrix.tolerance(kept)).all()


@names
@shapes
@pytest.mark.parametrize("threshold", [None, 0.7, 100.0])
def test_equals_float64(name, shape, threshold) -> None:
    check(name, *shape, threshold, normal(shape[1]))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(list(schemes.SCHEMES)), st.integers(1, 100), st.integers(1, 600),
    st.none() | st.floats(0, 3, width=32), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_shape_and_threshold(name, rows, cols, threshold, seed) -> None:
    check(name, rows, cols, threshold, normal(cols, seed=seed), seed)


def test_naive_skipping_is_for_q4_k() -> None:
    from spqt_ti.kernels.cpu.row_gemv import make_row_gemv

    with pytest.raises(ValueError, match="Q4_K alone, not for Q8_0"):
        make_row_gemv(1, True, True, decoder=decoder_of(schemes.find("q8_0")))


@functools.cache
def make_kernel(name: str):
    matmul = make_row_matmul(WORKERS, decoder_of(schemes.find(name)))

    @ti.kernel
    def kernel(
        quants: array_of(u32x16), headers: array_of(u32x4), rows: ti.i32, cols: ti.i32, a: array_of(f32x16),
        x_at: ti.i32, y_at: ti.i32, y_stride: ti.i32, count: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=WORKERS)
        for worker in range(WORKERS):
            superblocks = (cols + 255) // 256
            x_stride = (cols + 15) // 16
            matrix = ti.static(RowMatrix(quants, 0, headers, 0, None, None, rows, superblocks))
            tokens = ti.static(Tokens(x_at, x_stride, y_at, y_stride, count, None))
            matmul(matrix, cols, a, worker * ROW_TILE_VECTORS, tokens, worker)

    return kernel


def multiply(name: str, data: np.ndarray, rows: int, x: np.ndarray) -> np.ndarray:
    quants, headers = unpack(data, rows, x.shape[1], decoder_of(schemes.find(name)))
    assert len(headers) == rows * row_superblocks(x.shape[1]) * decoder_of(schemes.find(name)).planes.header_vectors
    count, stride, y_stride = -(-len(x) // 4) * 4, vectors_for(x.shape[1]), -(-rows // 64) * 4
    padded = np.full((count, stride * 16), np.nan, np.float32)
    padded[: len(x), : x.shape[1]] = x
    tiles, y = np.full(WORKERS * ROW_TILE_VECTORS * 16, np.nan), np.full(count * y_stride * 16, np.nan)
    a = upload(np.concatenate([tiles, padded.reshape(-1), y]).astype(np.float32))
    x_at = WORKERS * ROW_TILE_VECTORS
    make_kernel(name)(
        upload(quants, u32x16), upload(headers, u32x4), rows, x.shape[1], a, x_at, x_at + count * stride, y_stride,
        len(x),
    )  # fmt: skip
    return download(a)[-count * y_stride * 16 :].reshape(count, -1)[: len(x), :rows]


@names
@shapes
def test_product_of_many_tokens(name, shape) -> None:
    """Weights are decoded exactly; sums as of one token."""
    rows, cols = shape
    matrix, x = random_matrix(rows, cols, "row", schemes.find(name)), normal(5, cols)
    decoded = layout.dequantize_matrix(matrix.data, rows, cols, "row", schemes.find(name))
    np.testing.assert_array_equal(multiply(name, matrix.data, rows, np.eye(cols, dtype=np.float32)).T, decoded)
    for y, token in zip(multiply(name, matrix.data, rows, x), x, strict=True):
        assert (np.abs(y - matrix.weights @ token.astype(np.float64)) <= matrix.tolerance(token)).all()
