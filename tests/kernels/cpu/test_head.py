"""The vocabulary matrix: embedding exact, logits against float64 on the dequantised Q8_0."""

import functools

import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.formats import q8_0
from spqt_ti.kernels.cpu.head import make_head
from spqt_ti.kernels.cpu.vectors import array_of, f16x16, f32x16, u32x16
from spqt_ti.kernels.shared.geometry import TILE_ROWS, tiles_for
from spqt_ti.kernels.shared.vocabulary import tile

SHAPES = [(1, 32), (63, 96), (64, 96), (65, 96), (320, 192)]
shapes = pytest.mark.parametrize(("rows", "cols"), SHAPES)


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@functools.cache
def make_kernels(cols: int):
    logits_tile, embed = make_head(cols)

    @ti.kernel
    def logits(
        words: array_of(u32x16), scales: array_of(f16x16), first: ti.i32, count: ti.i32, x: array_of(f32x16),
        out: array_of(f32x16),
    ):  # fmt: skip
        for t in range(count):
            logits_tile(words, scales, first + t, x, 1, out, 4 * t)

    @ti.kernel
    def embeddings(words: array_of(u32x16), scales: array_of(f16x16), first: ti.i32, n: ti.i32, out: array_of(f32x16)):
        for row in range(n):
            for i in range(cols // 16):
                out[row * (cols // 16) + i] = embed(words, scales, first + row, i)

    return logits, embeddings


def random_blocks(rows: int, cols: int) -> np.ndarray:
    """Q8_0 blocks u8 [rows, cols / 32, 34] with every byte value, -128 included, and scales zero and denormal."""
    rng = np.random.default_rng(rows + cols)
    blocks = rng.integers(0, 256, (rows, cols // 32, 34), np.uint8)
    scales = rng.uniform(-0.01, 0.01, (rows, cols // 32)) * rng.choice([0, 1e-4, 1, 1], (rows, cols // 32))
    blocks[..., :2] = scales.astype("<f2")[..., None].view(np.uint8)
    return blocks


def dequantized(blocks: np.ndarray) -> np.ndarray:
    return q8_0.dequantize(blocks.reshape(-1, 34)).reshape(len(blocks), -1)


def run_logits(blocks: np.ndarray, x: np.ndarray, first: int = 0) -> np.ndarray:
    """Logits of the tiles from `first`; x follows a vector of NaN that must not be read."""
    words, scales = tile(blocks)
    count = tiles_for(len(blocks)) - first
    out = upload(np.zeros(count * TILE_ROWS))
    logits, _ = make_kernels(x.size)
    logits(
        upload(words, u32x16),
        upload(scales, f16x16),
        first,
        count,
        upload(np.concatenate([np.full(16, np.nan), x])),
        out,
    )
    return download(out)


@shapes
def test_logits(rows, cols) -> None:
    blocks, x = random_blocks(rows, cols), np.random.default_rng(1).standard_normal(cols).astype(np.float32)
    weights = dequantized(blocks).astype(np.float64)
    got = run_logits(blocks, x)
    # Quants are summed as q + 128, so errors are relative to that: a few roundings of sums of 32.
    steps = np.abs(blocks[..., :2].copy().view("<f2").astype(np.float64)).repeat(32, axis=1).reshape(rows, cols)
    parts = (np.abs(weights) + 128 * steps) @ np.abs(x)
    assert (np.abs(got[:rows] - weights @ x) <= 1e-6 * parts).all()
    np.testing.assert_array_equal(got[rows:], 0)  # rows that fill the last tile


@shapes
def test_every_weight_in_its_place(rows, cols) -> None:
    """One input at a time: q + 128 - 128 and its product with an f16 scale are exact."""
    blocks = random_blocks(rows, cols)
    weights = dequantized(blocks)
    for column in {0, 1, 15, 16, 31, cols - 1}:
        x = np.zeros(cols, np.float32)
        x[column] = 1
        np.testing.assert_array_equal(run_logits(blocks, x)[:rows], weights[:, column])


def test_tiles_from_the_middle() -> None:
    """An untied head begins where the embedding's tiles end."""
    blocks, x = random_blocks(320, 192), np.random.default_rng(1).standard_normal(192).astype(np.float32)
    np.testing.assert_array_equal(run_logits(blocks, x, first=2), run_logits(blocks, x)[2 * TILE_ROWS :])


@shapes
def test_embedding_is_exact(rows, cols) -> None:
    blocks = random_blocks(rows, cols)
    words, scales = tile(blocks)
    out = upload(np.zeros(rows * cols))
    _, embeddings = make_kernels(cols)
    embeddings(upload(words, u32x16), upload(scales, f16x16), 0, rows, out)
    np.testing.assert_array_equal(download(out).reshape(rows, cols), dequantized(blocks))


@shapes
def test_tiles(rows, cols) -> None:
    words, scales = tile(random_blocks(rows, cols))
    assert (words.dtype, words.shape) == (np.dtype("<u4"), (tiles_for(rows) * cols, 16))
    assert (scales.dtype, scales.shape) == (np.dtype("<f2"), (tiles_for(rows) * cols // 32 * 4, 16))
