"""Grouped-query attention of one query by one group of threads, in tiles of the context, and its KV cache.

A tile has as many positions as the group has threads. Scores: a thread of 512 has a half of the head's entries for two
positions, of 128 an eighth for eight. Values: a thread has one entry of the head for some of the positions. Either way
it loads up to 16 values before it multiplies: one group reads all of a head's cache, and only many loads at a time hide
the memory's latency. Maximum and sum are carried from tile to tile, so shared memory does not limit the context. They
begin with the query's own position, whose key and value are in shared memory and need not be in the cache yet: several
groups may have the same ones. Sizes in f32, per layer and KV head:

    keys    [head_dim][context]     neighbouring threads read neighbouring positions
    values  [context][head_dim]     neighbouring threads read neighbouring values
"""

import math
from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import LOWEST, SHARED, group_max, group_sum, log2

_IN_FLIGHT = 16  # loads of a thread, at most


@dataclass(frozen=True)
class CacheShape:
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


def make_attention(shape: CacheShape, threads: int, scale: float | None = None, cap: float = 0.0):
    """Build the ti.func of one thread of a group of `threads` that attends with one query.

    Arguments: cache; first entry of the keys of layer and head in it; `own`, shared f32 [3 head_dim]: the query, and
    key and value of its position, written before the group's last barrier; the first position that the query sees; its
    own; t. The result replaces the query, for the whole group. `scale` and `cap` as of the CPU's `make_attend`. Raises
    ValueError for heads of more entries than threads.
    """
    head_dim, context = shape.head_dim, shape.context
    if head_dim > threads or 3 * head_dim > SHARED or threads > SHARED:
        raise ValueError(f"{threads} threads cannot attend with heads of {head_dim}")
    scale = 1.0 / head_dim**0.5 if scale is None else scale
    threads_log2 = log2(threads)
    # Scores: `parts` of the head's entries, and that many positions per thread.
    parts = math.gcd(SHARED // threads, head_dim)
    run, stride = head_dim // parts, threads // parts
    stride_log2 = log2(stride)
    ahead = _divisor(run)
    # Values: `lanes` entries (some beyond the head's), and `spread` threads that share the positions.
    lanes_log2 = (head_dim - 1).bit_length()
    lanes = 1 << lanes_log2
    spread = threads // lanes
    values_ahead = min(_IN_FLIGHT, lanes)

    @ti.func
    def scaled(product):
        result = product * scale
        if ti.static(cap > 0.0):
            result = cap - (2.0 * cap) / (ti.exp(ti.min(product * (2.0 * scale / cap), 80.0)) + 1.0)
        return result

    @ti.func
    def score(cache: ti.template(), keys, own: ti.template(), pieces: ti.template(), first, position, t):
        """A part of the scores of `parts` positions of the tile, to pieces [parts][threads]."""
        lane, part = t & (stride - 1), t >> stride_log2
        for j in range(parts):
            product = 0.0
            if first + j * stride < position:  # the same for all of the group
                at = keys + part * run * context + ti.min(first + j * stride + lane, position - 1)
                for step in range(run // ahead):
                    loaded = ti.Vector([cache[at + (step * ahead + u) * context] for u in ti.static(range(ahead))])
                    for u in ti.static(range(ahead)):
                        product += own[part * run + step * ahead + u] * loaded[u]
            pieces[part * threads + j * stride + lane] = product

    @ti.func
    def sum_values(cache: ti.template(), values, weights: ti.template(), count, t):
        """Weighted sum of the values of every `spread`-th of a tile's positions, at the thread's entry of the head."""
        d, part = ti.min(t & (lanes - 1), head_dim - 1), t >> lanes_log2
        total = 0.0
        for step in range((count + values_ahead * spread - 1) // (values_ahead * spread)):
            begin = step * values_ahead * spread + part
            loaded = ti.Vector(
                [
                    cache[values + ti.min(begin + u * spread, count - 1) * head_dim + d]
                    for u in ti.static(range(values_ahead))
                ]
            )
            for u in ti.static(range(values_ahead)):
                total += weights[begin + u * spread] * loaded[u]  # beyond the last position 0
        return total

    @ti.func
    def attend(cache: ti.template(), keys, own: ti.template(), begin, position, t):
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        weights = ti.simt.block.SharedArray((SHARED,), ti.f32)
        pieces = ti.simt.block.SharedArray((SHARED,), ti.f32)  # parts * threads
        values = keys + shape.half_stride
        product, added = 0.0, 0.0
        if t < head_dim:
            product = own[t] * own[head_dim + t]
            added = own[2 * head_dim + t]
        highest = scaled(group_sum(shared, t, product, threads))
        total = 1.0
        for tile in range((position - begin + threads - 1) >> threads_log2):
            first = begin + (tile << threads_log2)
            ti.simt.block.sync()
            score(cache, keys, own, pieces, first, position, t)
            ti.simt.block.sync()
            mine = LOWEST
            if first + t < position:
                mine = 0.0
                for part in ti.static(range(parts)):
                    mine += pieces[part * threads + t]
                mine = scaled(mine)
            new_highest = ti.max(highest, group_max(shared, t, mine, threads))
            weight = 0.0
            if first + t < position:
                weight = ti.exp(mine - new_highest)
            rescale = ti.exp(highest - new_highest)
            highest = new_highest
            total = total * rescale + group_sum(shared, t, weight, threads)
            weights[t] = weight
            ti.simt.block.sync()
            count = ti.min(threads, position - first)
            added = added * rescale + sum_values(cache, values + first * head_dim, weights, count, t)
        ti.simt.block.sync()
        pieces[t] = added
        ti.simt.block.sync()
        if t < head_dim:
            for part in ti.static(range(1, spread)):
                added += pieces[part * lanes + t]
            own[t] = added / total
        ti.simt.block.sync()

    return attend


def _divisor(run: int) -> int:
    """The largest divisor that is not above the loads in flight."""
    return max(n for n in range(1, _IN_FLIGHT + 1) if run % n == 0)


def make_load_own(shape: CacheShape):
    """Build the ti.func that fills `own` of `make_attention` with the query at a[query:] and what the cache has for its
    position.
    """
    head_dim, context = shape.head_dim, shape.context

    @ti.func
    def load_own(cache: ti.template(), keys, a: ti.template(), query, position, own: ti.template(), t):
        ti.simt.block.sync()
        if t < head_dim:
            own[t] = a[query + t]
            own[head_dim + t] = cache[keys + t * context + position]
            own[2 * head_dim + t] = cache[keys + shape.half_stride + position * head_dim + t]
        ti.simt.block.sync()

    return load_own


def make_store_own(head_dim: int):
    """Build the ti.func that puts the result in `own` to a[out:]."""

    @ti.func
    def store_own(own: ti.template(), a: ti.template(), out, t):
        if t < head_dim:
            a[out + t] = own[t]

    return store_own


def make_append_own(shape: CacheShape):
    """Build the ti.func that puts key and value of `own` into the cache."""
    head_dim, context = shape.head_dim, shape.context

    @ti.func
    def append_own(cache: ti.template(), keys, position, own: ti.template(), t):
        if t < head_dim:
            cache[keys + t * context + position] = own[head_dim + t]
            cache[keys + shape.half_stride + position * head_dim + t] = own[2 * head_dim + t]

    return append_own


def make_write_pair(shape: CacheShape):
    """Build the ti.func that puts entries low_at and high_at of a key or a value into the cache."""
    head_dim, context = shape.head_dim, shape.context

    @ti.func
    def write_pair(cache: ti.template(), keys, is_key, position, low_at, high_at, low, high):
        if is_key:
            cache[keys + low_at * context + position] = low
            cache[keys + high_at * context + position] = high
        else:
            values = keys + shape.half_stride + position * head_dim
            cache[values + low_at] = low
            cache[values + high_at] = high

    return write_pair
