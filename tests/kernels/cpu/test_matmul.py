"""The matrix product of prefill, for zigzag matrices and for the vocabulary's, against float64."""

import functools

import needs
import numpy as np
import pytest
import scheme_matrices
from device_vectors import download, upload
from q4_k_matrices import Matrix, integer_matrix, make_matrix, random_matrix, superblock_count

from spqt_ti.backend import address, available_threads, start, ti
from spqt_ti.formats import layout, q4_k, q8_0, schemes
from spqt_ti.kernels.cpu.arguments import Matrix as DeviceMatrix
from spqt_ti.kernels.cpu.matmul import TILE_VECTORS, make_matmul, make_vocabulary_matmul, scratch_vectors
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.kernels.cpu.tokens import Tokens
from spqt_ti.kernels.cpu.vectors import array_of, f16x16, f32x16, u32x4, u32x8, u32x16, vectors_for
from spqt_ti.kernels.cpu.zigzag import ZigzagShape, unpack
from spqt_ti.kernels.pack.quantize import quantize_matrix
from spqt_ti.kernels.shared.geometry import tiles_for
from spqt_ti.kernels.shared.vocabulary import tile

# Tail bands of one and two sub-blocks, last bands that are completed, and columns around a tile of 256.
SHAPES = [(1, 1), (33, 7), (65, 255), (256, 256), (320, 257), (300, 300), (960, 576), (6000, 33)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
WORKERS = min(2, available_threads())


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@functools.cache
def make_zigzag_kernel(workers: int, scheme: str, exact: bool, skips_zeros: bool):
    matmul = make_matmul(workers, exact, decoder_of(schemes.find(scheme)), skips_zeros)

    @ti.kernel
    def zigzag_matmul(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), cols: ti.i32, full_bands: ti.i32,
        tail_bands: ti.i32, panel_bands: ti.i32, tiles: array_of(f32x16), stride: ti.i32, tiles_address: ti.i64,
        x_at: ti.i32, x_stride: ti.i32, y_at: ti.i32, y_stride: ti.i32, tokens: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            matrix = ti.static(
                DeviceMatrix(
                    quants, 0, tail, 0, headers, 0, None, None, None, cols, full_bands, tail_bands, panel_bands
                )
            )
            address = tiles_address  # a kernel's own argument would be loaded again for each use
            places = ti.static(Tokens(x_at, x_stride, y_at, y_stride, tokens, address))
            matmul(matrix, tiles, worker * stride, places, worker)

    return zigzag_matmul


@functools.cache
def make_vocabulary_kernel(cols: int, workers: int):
    matmul = make_vocabulary_matmul(cols, workers)

    @ti.kernel
    def vocabulary_matmul(
        words: array_of(u32x16), scales: array_of(f16x16), first: ti.i32, strips: ti.i32, a: array_of(f32x16),
        x_at: ti.i32, x_stride: ti.i32, y_at: ti.i32, y_stride: ti.i32, tokens: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            places = ti.static(Tokens(x_at, x_stride, y_at, y_stride, tokens, None))
            matmul(words, scales, first, strips, a, worker * TILE_VECTORS, places, worker)

    return vocabulary_matmul


def scratch(x: np.ndarray, tiles: int, y_vectors: int):
    """Device array [`tiles` vectors | X | Y] with NaN wherever X has no value, and the vectors of Y.

    Tokens are rounded up to four: the kernel reads what lies there, and must not let it in.
    """
    tokens, stride = -(-len(x) // 4) * 4, vectors_for(x.shape[1])
    padded = np.full((tokens, stride * 16), np.nan, np.float32)
    padded[: len(x), : x.shape[1]] = x
    empty = np.full(tiles * 16, np.nan, np.float32)
    y = np.full(tokens * y_vectors * 16, np.nan, np.float32)
    return upload(np.concatenate([empty, padded.reshape(-1), y])), tokens * y_vectors


def multiply(
    data: np.ndarray, rows: int, x: np.ndarray, workers: int = WORKERS, scheme: str = "q4_k", exact: bool = True,
    skips_zeros: bool = False,
) -> np.ndarray:  # fmt: skip
    """Y f32 [tokens, rows] = X W^T of stored zigzag bytes."""
    decoder = decoder_of(schemes.find(scheme))
    shape = ZigzagShape(rows, x.shape[1], planes=decoder.planes)
    quants, tail, headers = unpack(data, shape, decoder)
    stride, tiles = shape.bands * 16, scratch_vectors(len(x), decoder, exact)
    a, y_vectors = scratch(x, workers * tiles, stride)
    x_at, x_stride = workers * tiles, vectors_for(x.shape[1])
    y_at = x_at + -(-len(x) // 4) * 4 * x_stride
    make_zigzag_kernel(workers, scheme, exact, skips_zeros)(
        upload(quants, u32x16), upload(tail, u32x8), upload(headers, u32x4), shape.cols, shape.full_bands,
        shape.tail_bands, shape.panel_bands, a, tiles, address(a), x_at, x_stride, y_at, stride, len(x),
    )  # fmt: skip
    return download(a)[-y_vectors * 16 :].reshape(-1, stride * 16)[: len(x), :rows]


def multiply_vocabulary(blocks: np.ndarray, x: np.ndarray, workers: int = WORKERS, first: int = 0) -> np.ndarray:
    """Y f32 [tokens, rows] = X W^T of Q8_0 blocks [rows, cols / 32, 34], from tile `first` on."""
    words, scales = tile(blocks)
    strips = tiles_for(len(blocks)) - first
    a, y_vectors = scratch(x, workers * TILE_VECTORS, strips * 4)
    x_at, x_stride = workers * TILE_VECTORS, x.shape[1] // 16
    y_at = x_at + -(-len(x) // 4) * 4 * x_stride
    make_vocabulary_kernel(x.shape[1], workers)(
        upload(words, u32x16), upload(scales, f16x16), first, strips, a, x_at, x_stride, y_at, strips * 4, len(x)
    )
    return download(a)[-y_vectors * 16 :].reshape(-1, strips * 64)[: len(x), : len(blocks) - first * 64]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def check(matrix: Matrix, x: np.ndarray) -> None:
    y = multiply(matrix.data, len(matrix.weights), x)
    for row, token in zip(y, x, strict=True):
        assert (np.abs(row - matrix.weights @ token.astype(np.float64)) <= matrix.tolerance(token)).all()


@shapes
def test_product(shape) -> None:
    check(random_matrix(*shape, "zigzag"), normal(5, shape[1]))


@pytest.mark.parametrize("tokens", range(1, 10))
def test_any_number_of_tokens(tokens) -> None:
    check(random_matrix(320, 300, "zigzag"), normal(tokens, 300))


@pytest.mark.parametrize("rows", [r for n in range(8) for r in (32 * n + 1, 32 * n + 32)])
def test_every_tail(rows) -> None:
    for full in (0, 256):
        check(random_matrix(full + rows, 37, "zigzag", rows), normal(4, 37))


@shapes
def test_weights_are_decoded_exactly(shape) -> None:
    """X = identity gives W^T bit for bit: d * scale * q has 21 bits, so decoding rounds once, as ggml's does."""
    rows, cols = shape
    data = random_matrix(rows, cols, "zigzag").data
    y = multiply(data, rows, np.eye(cols, dtype=np.float32))
    np.testing.assert_array_equal(y.T, layout.dequantize_matrix(data, rows, cols, "zigzag", q4_k.SCHEME))


@pytest.mark.parametrize("scheme", [name for name in schemes.SCHEMES if name != "q4_k"])
@shapes
def test_other_schemes(shape, scheme) -> None:
    """Decoded exactly, as Q4_K is; products in the order of the same sums."""
    rows, cols = shape
    matrix, x = scheme_matrices.random_matrix(rows, cols, "zigzag", schemes.find(scheme)), normal(5, cols)
    y = multiply(matrix.data, rows, np.eye(cols, dtype=np.float32), scheme=scheme)
    np.testing.assert_array_equal(
        y.T, layout.dequantize_matrix(matrix.data, rows, cols, "zigzag", schemes.find(scheme))
    )
    for row, token in zip(multiply(matrix.data, rows, x, scheme=scheme), x, strict=True):
        assert (np.abs(row - matrix.weights @ token.astype(np.float64)) <= matrix.tolerance(token)).all()


def test_each_column_is_used_once() -> None:
    matrix = integer_matrix(300, 601, "zigzag")
    np.testing.assert_array_equal(multiply(matrix.data, 300, np.ones((1, 601), np.float32))[0], matrix.weights.sum(1))


# One input of 25,000 times the median is what SmolLM2's down has.
@needs.sixteen_bits
@pytest.mark.parametrize(("outlier", "least", "most"), [(1, 1.9e-5, 3.2e-5), (25_000, 5.5e-5, 9.5e-5)])
def test_error_of_16_bits(outlier, least, most) -> None:
    """|Y - X W^T| / |X W^T|, rms: not above the decode step's (test_gemv.py). Less than `least` is not 16 bits."""
    errors = []
    for rows, cols in ((960, 576), (320, 257), (512, 1536)):
        data = quantize_matrix(
            np.random.default_rng(2).standard_normal((rows, cols), np.float32), "zigzag", q4_k.SCHEME
        )
        weights = layout.dequantize_matrix(data, rows, cols, "zigzag", q4_k.SCHEME).astype(np.float64)
        x = normal(6, cols)
        x[np.arange(6), np.arange(6)] = outlier * np.median(np.abs(x))
        y, expected = multiply(data, rows, x, exact=False), x @ weights.T
        errors.append(np.linalg.norm(y - expected, axis=1) / np.linalg.norm(expected, axis=1))
    assert least < np.sqrt(np.mean(np.square(errors))) < most


@needs.sixteen_bits
@pytest.mark.parametrize("shape", [*SHAPES, (64, 70), (225, 129)], ids=str)
def test_product_in_16_bits(shape) -> None:
    """Any number of tokens; each of them within the roundings of x d."""
    matrix = random_matrix(*shape, "zigzag")
    for tokens in (1, 6, 17):
        x = normal(tokens, shape[1])
        for row, token in zip(multiply(matrix.data, shape[0], x, exact=False), x, strict=True):
            allowed = matrix.tolerance(token) + matrix.step_tolerance(token)
            assert (np.abs(row - matrix.weights @ token.astype(np.float64)) <= allowed).all()


@needs.sixteen_bits
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.92, 1.0])
@pytest.mark.parametrize("shape", [*SHAPES, (225, 129)], ids=str)
def test_skipping_zeros_changes_no_bit(shape, zeros) -> None:
    """Columns that are zero for all tokens, for some, and for none; NaN comes through."""
    matrix, rng = random_matrix(*shape, "zigzag"), np.random.default_rng(3)
    for tokens in (1, 6, 70):
        x = normal(tokens, shape[1])
        x[:, rng.random(shape[1]) < zeros] = 0.0
        x[rng.random(x.shape) < zeros / 2] = 0.0
        x[0, -1] = np.nan
        expected = multiply(matrix.data, shape[0], x, exact=False)
        assert np.isnan(expected[0]).all()
        np.testing.assert_array_equal(multiply(matrix.data, shape[0], x, exact=False, skips_zeros=True), expected)


@needs.sixteen_bits
def test_largest_sums_in_16_bits() -> None:
    """Every factor is the largest that there is, over more columns than a sum of 32 bits could hold."""
    count = superblock_count(256, 300, "zigzag")
    one, most = np.ones(count, np.float16), np.full((count, 8), 63, np.uint8)
    for quant in (0, 15):
        matrix = make_matrix(
            256, 300, "zigzag", q4_k.Fields(one, 0 * one, most, most, np.full((count, 256), quant, np.uint8))
        )
        y = multiply(matrix.data, 256, np.ones((1, 300), np.float32), exact=False)[0]
        np.testing.assert_allclose(y, 300 * 63 * quant, rtol=1e-6, atol=0.1)


@needs.both
@shapes
def test_tokens_do_not_touch_each_other(shape, exact) -> None:
    data, x = random_matrix(*shape, "zigzag").data, normal(6, shape[1])
    x[2] = np.nan
    x[4] = np.inf
    together = multiply(data, shape[0], x, exact=exact)
    assert np.isnan(together[2]).all()
    assert not np.isfinite(together[4]).any()
    for token in (0, 1, 3, 5):
        np.testing.assert_array_equal(together[token], multiply(data, shape[0], x[token : token + 1], exact=exact)[0])


@pytest.mark.skipif(available_threads() < 2, reason="needs two CPUs")
@needs.both
@shapes
def test_workers_do_not_matter(shape, exact) -> None:
    data, x = random_matrix(*shape, "zigzag").data, normal(5, shape[1])
    one, two = (multiply(data, shape[0], x, workers, exact=exact) for workers in (1, 2))
    np.testing.assert_array_equal(one, two)


def random_blocks(rows: int, cols: int) -> np.ndarray:
    """Q8_0 blocks u8 [rows, cols / 32, 34] with every byte value, -128 included."""
    rng = np.random.default_rng(rows + cols)
    blocks = rng.integers(0, 256, (rows, cols // 32, 34), np.uint8)
    blocks[..., :2] = rng.uniform(-0.01, 0.01, (rows, cols // 32)).astype("<f2")[..., None].view(np.uint8)
    return blocks


def dequantized(blocks: np.ndarray) -> np.ndarray:
    return q8_0.dequantize(blocks.reshape(-1, 34)).reshape(len(blocks), -1)


vocabularies = pytest.mark.parametrize(("rows", "cols"), [(1, 32), (65, 288), (320, 288)])


@vocabularies
@pytest.mark.parametrize("tokens", [1, 4, 7])
def test_vocabulary_product(rows, cols, tokens) -> None:
    blocks, x = random_blocks(rows, cols), normal(tokens, cols)
    weights = dequantized(blocks).astype(np.float64)
    # As for Q4_K (q4_k_matrices): 1e-6 of the sum of |terms|.
    tolerance = 1e-6 * (np.abs(x) @ np.abs(weights).T)
    assert (np.abs(multiply_vocabulary(blocks, x) - x @ weights.T) <= tolerance).all()


@vocabularies
def test_vocabulary_is_decoded_exactly(rows, cols) -> None:
    blocks = random_blocks(rows, cols)
    np.testing.assert_array_equal(multiply_vocabulary(blocks, np.eye(cols, dtype=np.float32)).T, dequantized(blocks))


def test_vocabulary_tiles_from_the_middle() -> None:
    blocks, x = random_blocks(320, 288), normal(3, 288)
    np.testing.assert_array_equal(multiply_vocabulary(blocks, x, first=2), multiply_vocabulary(blocks, x)[:, 128:])


@pytest.mark.skipif(available_threads() < 2, reason="needs two CPUs")
def test_vocabulary_workers_do_not_matter() -> None:
    blocks, x = random_blocks(320, 288), normal(3, 288)
    np.testing.assert_array_equal(multiply_vocabulary(blocks, x, 1), multiply_vocabulary(blocks, x, 2))
