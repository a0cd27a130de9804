"""Attention of one query on GPUs against float64, and where the cache keeps its entries."""

import functools

import numpy as np
import pytest

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.attention import (
    CacheShape,
    make_append_own,
    make_attention,
    make_load_own,
    make_store_own,
    make_write_pair,
)
from spqt_ti.kernels.simt.groups import SHARED
from spqt_ti.kernels.simt.transfer import upload, zeros

CONTEXT = 320
TILE = 128  # threads, and positions of a tile


@functools.cache
def kernels(head_dim: int):
    """attend(cache, a, begin, position): a holds a query, then its result; write(cache, a, position): key and value of
    a; append(cache, a, position): as both, with query, key and value in a, then the result.
    """
    layout = CacheShape(1, 1, head_dim, CONTEXT)
    attend_one, write_pair = make_attention(layout, TILE), make_write_pair(layout)
    load_own, append_own, store_own = (
        make_load_own(layout),
        make_append_own(layout),
        make_store_own(head_dim),
    )
    array = ti.types.ndarray(dtype=ti.f32, ndim=1)

    @ti.kernel
    def attend(cache: array, a: array, begin: ti.i32, position: ti.i32):
        ti.loop_config(block_dim=TILE)
        for t in range(TILE):
            own = ti.simt.block.SharedArray((SHARED,), ti.f32)
            load_own(cache, 0, a, 0, position, own, t)
            attend_one(cache, 0, own, begin, position, t)
            store_own(own, a, head_dim, t)

    @ti.kernel
    def append(cache: array, a: array, position: ti.i32):
        ti.loop_config(block_dim=TILE)
        for t in range(TILE):
            own = ti.simt.block.SharedArray((SHARED,), ti.f32)
            ti.simt.block.sync()
            for part in ti.static(range(3)):
                if t < head_dim:
                    own[part * head_dim + t] = a[part * head_dim + t]
            ti.simt.block.sync()
            append_own(cache, 0, position, own, t)
            attend_one(cache, 0, own, 0, position, t)
            store_own(own, a, 3 * head_dim, t)

    @ti.kernel
    def write(cache: array, a: array, position: ti.i32):
        ti.loop_config(block_dim=TILE)
        for i in range(TILE):
            d = i & (TILE // 2 - 1)
            is_key = i < TILE // 2
            first = ti.select(is_key, 0, head_dim)
            if d < head_dim // 2:
                write_pair(cache, 0, is_key, position, d, d + head_dim // 2, a[first + d], a[first + d + head_dim // 2])

    return attend, write, append, layout


def expected(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = keys.astype(np.float64) @ q / np.sqrt(q.size)
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


@pytest.mark.parametrize("head_dim", [6, 64, 80, 128])
@pytest.mark.parametrize("scale", [1, 8], ids=["flat", "peaked"])
def test_against_float64(head_dim: int, scale: int) -> None:
    attend, write, append, layout = kernels(head_dim)
    cache, generator = zeros(ti.f32, layout.size), np.random.default_rng(0)
    keys, values = generator.standard_normal((2, CONTEXT, head_dim), dtype=np.float32)
    for position in range(CONTEXT):
        write(cache, upload(np.concatenate([keys[position], values[position]])), position)
    for position in (0, 1, TILE - 1, TILE, CONTEXT - 1):
        q = scale * generator.standard_normal(head_dim).astype(np.float32)
        a = upload(np.concatenate([q, np.zeros_like(q)]))
        attend(cache, a, 0, position)
        wanted = expected(q, keys[: position + 1], values[: position + 1])
        np.testing.assert_allclose(a.to_numpy()[head_dim:], wanted, atol=2e-5)
        before = cache.to_numpy()
        both = upload(np.concatenate([q, keys[position], values[position], np.zeros_like(q)]))
        append(cache, both, position)
        np.testing.assert_allclose(both.to_numpy()[3 * head_dim :], wanted, atol=2e-5)
        np.testing.assert_array_equal(cache.to_numpy(), before)  # what was there


@pytest.mark.parametrize("window", [1, 2, 5, TILE - 1, TILE, TILE + 1, CONTEXT])
def test_positions_before_the_first_seen_are_not_read(window: int) -> None:
    """They are NaN here."""
    attend, write, _, layout = kernels(64)
    generator = np.random.default_rng(window)
    keys, values = generator.standard_normal((2, CONTEXT, 64), dtype=np.float32)
    for position in (0, 17, CONTEXT - 1):
        begin = max(0, position + 1 - window)
        cache = upload(np.full(layout.size, np.nan, np.float32))
        for seen in range(begin, position + 1):
            write(cache, upload(np.concatenate([keys[seen], values[seen]])), seen)
        q = generator.standard_normal(64).astype(np.float32)
        a = upload(np.concatenate([q, np.zeros_like(q)]))
        attend(cache, a, begin, position)
        wanted = expected(q, keys[begin : position + 1], values[begin : position + 1])
        np.testing.assert_allclose(a.to_numpy()[64:], wanted, atol=2e-5)


def test_cache_layout() -> None:
    layout = CacheShape(2, 3, 16, 48)
    assert layout.half_stride == 16 * 48
    assert layout.size == 2 * layout.layer_stride == 2 * 3 * 2 * 16 * 48
