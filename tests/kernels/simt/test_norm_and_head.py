"""RMSNorm, embeddings, logits and the best token on GPUs, against NumPy."""

import functools

import numpy as np
import pytest

from spqt_ti.backend import ti
from spqt_ti.formats import q8_0
from spqt_ti.kernels.simt.groups import array_of, round_up
from spqt_ti.kernels.simt.head import THREADS, Best, Tiles, make_best_token, make_embed, make_score_tile, tile
from spqt_ti.kernels.simt.norm import make_norm
from spqt_ti.kernels.simt.transfer import make_copy, upload, zeros


@pytest.mark.parametrize("size", [33, 576, 1000])
def test_norm(size: int) -> None:
    norm = make_norm(size, 128, 1e-5)

    @ti.kernel
    def normalise(a: array_of(ti.f32)):
        ti.loop_config(block_dim=128)
        for t in range(128):
            norm(a, 0, size, 2 * size, t)

    x, w = np.random.default_rng(0).standard_normal((2, size), dtype=np.float32)
    a = upload(np.concatenate([x, w, np.zeros(size, np.float32)]))
    normalise(a)
    expected = x * w / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5)
    np.testing.assert_allclose(a.to_numpy()[2 * size :], expected, rtol=2e-6)


ROWS, COLS = 300, 96  # not a multiple of a tile's 64 rows
TILES = -(-ROWS // 64)


@functools.cache
def head_kernels():
    """score(words, scales, a, logits, integers): a: x, then each tile's highest; embed(words, scales, row, a)."""
    score_tile, embed_one, best_token = make_score_tile(COLS, ROWS), make_embed(COLS), make_best_token(ROWS, TILES)
    threads = round_up(COLS, 128)

    @ti.kernel
    def score(
        words: array_of(ti.u32), scales: array_of(ti.u32), a: array_of(ti.f32), logits: array_of(ti.f32),
        integers: array_of(ti.i32),
    ):  # fmt: skip
        ti.loop_config(block_dim=THREADS)
        for i in range(TILES * THREADS):
            tiles = ti.static(Tiles(words, scales, 0))
            best = ti.static(Best(a, COLS, integers, 1))
            score_tile(tiles, i // THREADS, a, 0, logits, best, i & (THREADS - 1))
        ti.loop_config(block_dim=THREADS)
        for t in range(THREADS):
            row = best_token(ti.static(Best(a, COLS, integers, 1)), t)
            if t == 0:
                integers[0] = row

    @ti.kernel
    def embed(words: array_of(ti.u32), scales: array_of(ti.u32), row: ti.i32, a: array_of(ti.f32)):
        ti.loop_config(block_dim=128)
        for i in range(threads):
            if i < COLS:
                a[i] = embed_one(words, scales, row, i)

    return score, embed


def vocabulary(weights: np.ndarray) -> tuple[np.ndarray, ti.Ndarray, ti.Ndarray]:
    """Dequantised weights, and what kernels read."""
    blocks = q8_0.quantize(weights.reshape(-1, 32))
    words, scales = tile(blocks.reshape(ROWS, COLS // 32, 34))
    return q8_0.dequantize(blocks).reshape(ROWS, COLS), upload(words), upload(scales)


def scores(x: np.ndarray, words: ti.Ndarray, scales: ti.Ndarray) -> tuple[np.ndarray, int]:
    a = upload(np.concatenate([x, np.zeros(TILES, np.float32)]))
    logits, integers = zeros(ti.f32, TILES * 64), zeros(ti.i32, 1 + TILES)
    head_kernels()[0](words, scales, a, logits, integers)
    return logits.to_numpy()[:ROWS], int(integers.to_numpy()[0])


def test_logits_and_best_token() -> None:
    generator = np.random.default_rng(0)
    weights, words, scales = vocabulary(generator.standard_normal((ROWS, COLS), dtype=np.float32))
    for _ in range(5):
        x = generator.standard_normal(COLS, dtype=np.float32)
        logits, best = scores(x, words, scales)
        np.testing.assert_allclose(logits, weights.astype(np.float64) @ x, atol=1e-4)
        assert best == logits.argmax()


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "all negative"])
def test_the_first_of_equal_logits_wins(sign: int) -> None:
    """Padding rows have logit 0, above all of the negative ones."""
    row = np.random.default_rng(1).standard_normal(COLS, dtype=np.float32)
    rows = sign * np.tile(row, (ROWS, 1))
    rows[:70] *= 2 if sign < 0 else 0.5
    _, words, scales = vocabulary(rows)
    assert scores(row, words, scales)[1] == 70


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_no_token_is_the_best_where_a_logit_is_not_finite(bad: float) -> None:
    generator = np.random.default_rng(2)
    _, words, scales = vocabulary(generator.standard_normal((ROWS, COLS), dtype=np.float32))
    x = generator.standard_normal(COLS, dtype=np.float32)
    x[40] = bad
    assert scores(x, words, scales)[1] == -1


def test_embeddings() -> None:
    weights, words, scales = vocabulary(np.random.default_rng(0).standard_normal((ROWS, COLS), dtype=np.float32))
    a = zeros(ti.f32, COLS)
    for row in (0, 1, 63, 64, 150, ROWS - 1):
        head_kernels()[1](words, scales, row, a)
        np.testing.assert_array_equal(a.to_numpy(), weights[row])


def test_copy() -> None:
    source, target = upload(np.arange(20000, dtype=np.float32)), zeros(ti.f32, 20010)
    make_copy()(source, 5, target, 8, 19000)
    got = target.to_numpy()
    np.testing.assert_array_equal(got[8:19008], np.arange(5, 19005))
    assert not got[:8].any()
    assert not got[19008:].any()
