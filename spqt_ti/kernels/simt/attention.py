"""Grouped-query attention of one query by one group of threads, in tiles of the context, and its KV cache.

A thread has one position of a tile for the scores and one value of the head for the sums; maximum and sum are carried
from tile to tile, so shared memory does not limit the context. They begin with the query's own position, whose key and
value are in shared memory and need not be in the cache yet: several groups may have the same ones. Sizes in f32, per
layer and KV head:

    keys    [head_dim][context]     neighbouring threads read neighbouring positions
    values  [context][head_dim]     neighbouring threads read neighbouring values
"""

from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import LOWEST, group_max, group_sum, log2

TILE = 128  # positions, and threads of a group


@dataclass(frozen=True)
class CacheLayout:
    """Geometry of the KV cache. Keys and values of one layer and head are adjacent."""

    layers: int
    kv_heads: int
    head_dim: int
    context: int

    @property
    def half_stride(self) -> int:
        """Entries that the keys (or the values) of one layer and KV head take."""
        return self.context * self.head_dim

    @property
    def layer_stride(self) -> int:
        return 2 * self.kv_heads * self.half_stride

    @property
    def size(self) -> int:
        return self.layers * self.layer_stride


def make_attention(layout: CacheLayout):
    """Build the ti.func of one thread (of TILE) of a group that attends with one query.

    Arguments: cache; first entry of the keys of layer and head in it; `own`, shared f32 [3 head_dim]: the query, and
    key and value of its position, written before the group's last barrier; the query's position; t. The result comes
    in the place of the query, for the whole group.
    """
    head_dim, context = layout.head_dim, layout.context
    parts = -(-head_dim // TILE)
    scale = 1.0 / head_dim**0.5
    tile_log2 = log2(TILE)

    @ti.func
    def attend(cache: ti.template(), keys, own: ti.template(), position, t):
        shared = ti.simt.block.SharedArray((TILE,), ti.f32)
        weights = ti.simt.block.SharedArray((TILE,), ti.f32)
        values = keys + layout.half_stride
        product = 0.0
        sums = ti.Vector([0.0] * parts)
        for part in ti.static(range(parts)):
            d = part * TILE + t
            if d < head_dim:
                product += own[d] * own[head_dim + d]
                sums[part] = own[2 * head_dim + d]
        highest = group_sum(shared, t, product, TILE) * scale
        total = 1.0
        for tile in range((position + TILE - 1) >> tile_log2):
            place = (tile << tile_log2) + t
            score = LOWEST
            if place < position:
                score = 0.0
                for d in range(head_dim):
                    score += own[d] * cache[keys + d * context + place]
                score *= scale
            new_highest = ti.max(highest, group_max(shared, t, score, TILE))
            weight = 0.0
            if place < position:
                weight = ti.exp(score - new_highest)
            rescale = ti.exp(highest - new_highest)
            highest = new_highest
            total = total * rescale + group_sum(shared, t, weight, TILE)
            weights[t] = weight
            ti.simt.block.sync()
            count = ti.min(TILE, position - (tile << tile_log2))
            for part in ti.static(range(parts)):
                d = part * TILE + t
                if d < head_dim:
                    added = 0.0
                    for p in range(count):
                        added += weights[p] * cache[values + ((tile << tile_log2) + p) * head_dim + d]
                    sums[part] = sums[part] * rescale + added
        for part in ti.static(range(parts)):
            if part * TILE + t < head_dim:
                own[part * TILE + t] = sums[part] / total
        ti.simt.block.sync()

    return attend


def make_load_own(layout: CacheLayout):
    """Build the ti.func that fills `own` of `make_attention` with the query at a[query:] and what the cache has for its
    position.
    """
    head_dim, context = layout.head_dim, layout.context

    @ti.func
    def load_own(cache: ti.template(), keys, a: ti.template(), query, position, own: ti.template(), t):
        ti.simt.block.sync()
        d = t
        while d < head_dim:
            own[d] = a[query + d]
            own[head_dim + d] = cache[keys + d * context + position]
            own[2 * head_dim + d] = cache[keys + layout.half_stride + position * head_dim + d]
            d += TILE
        ti.simt.block.sync()

    return load_own


def make_store_own(head_dim: int):
    """Build the ti.func that puts the result in `own` to a[out:]."""

    @ti.func
    def store_own(own: ti.template(), a: ti.template(), out, t):
        d = t
        while d < head_dim:
            a[out + d] = own[d]
            d += TILE

    return store_own


def make_append_own(layout: CacheLayout):
    """Build the ti.func that puts key and value of `own` into the cache."""
    head_dim, context = layout.head_dim, layout.context

    @ti.func
    def append_own(cache: ti.template(), keys, position, own: ti.template(), t):
        d = t
        while d < head_dim:
            cache[keys + d * context + position] = own[head_dim + d]
            cache[keys + layout.half_stride + position * head_dim + d] = own[2 * head_dim + d]
            d += TILE

    return append_own


def make_write_pair(layout: CacheLayout):
    """Build the ti.func that puts entries d and d + head_dim / 2 of a key or a value into the cache."""
    head_dim, context, half = layout.head_dim, layout.context, layout.head_dim // 2

    @ti.func
    def write_pair(cache: ti.template(), keys, is_key, position, d, low, high):
        if is_key:
            cache[keys + d * context + position] = low
            cache[keys + (d + half) * context + position] = high
        else:
            values = keys + layout.half_stride + position * head_dim
            cache[values + d] = low
            cache[values + d + half] = high

    return write_pair
