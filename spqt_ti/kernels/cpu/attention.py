"""Grouped-query attention of one token over the KV cache, with 16 positions or 16 values of a head in the lanes.

Keys lie transposed in pages of 16 positions, so that the scores of 16 positions are a sum of (one query value) *
(one vector); values lie as they are, so that a weighted sum needs no transposition either. Sizes in vectors, per
layer and KV head:

    keys    [context / 16][head_dim]            lane = position in its page
    values  [context][head_dim / 16]            lane = value in its vector

The query heads of a KV head go through it together: what is read and converted once is used for several of them.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.vectors import exp_lanes, f16x16, f32x16, lane_max, lane_sum, value

LOWEST = -3.0e38
SUMS = 16  # vectors of sums in registers: so many heads at a time as have no more


@dataclass(frozen=True)
class CacheShape:
    """Geometry of the KV cache; `context` is a multiple of 16. Keys and values of one layer and head are adjacent.

    `half`: stored as f16 (11 bits of keys and values, half the bytes), else f32.
    """

    layers: int
    kv_heads: int
    head_dim: int
    context: int
    half: bool = False

    @property
    def half_stride(self) -> int:
        """Vectors that the keys (or the values) of one layer and KV head take."""
        return self.context * self.head_dim // 16

    @property
    def layer_stride(self) -> int:
        return 2 * self.kv_heads * self.half_stride

    @property
    def vectors(self) -> int:
        return self.layers * self.layer_stride

    @property
    def dtype(self):
        """Type of its vectors."""
        return f16x16 if self.half else f32x16


def make_writers(shape: CacheShape):
    """Build the ti.funcs `write_key(cache, keys, position, a, head)`, which puts the key that begins at value a[head]
    into its lane of the transposed page, and `write_value(cache, values, position, a, head)`, which copies the value
    that begins at vector a[head].
    """
    head_dim, vector, element = shape.head_dim, shape.dtype, ti.f16 if shape.half else ti.f32

    @ti.func
    def write_key(cache: ti.template(), keys, position, a: ti.template(), head):
        page = keys + (position >> 4) * head_dim
        for d in range(head_dim):
            cache[page + d][position & 15] = ti.cast(value(a, head + d), element)

    @ti.func
    def write_value(cache: ti.template(), values, position, a: ti.template(), head):
        for d in range(head_dim // 16):
            v = a[head + d]
            cache[values + position * (head_dim // 16) + d] = vector(
                *[ti.cast(v[i], element) for i in ti.static(range(16))]
            )

    return write_key, write_value


class Offsets(NamedTuple):
    """First vectors of what an attention writes: scores (scratch), weighted values, and their maxima and sums."""

    scores: Any
    out: Any
    softmax: Any


def make_attend(
    shape: CacheShape, queries_per_kv: int, windowed: bool = False, scale: float | None = None, cap: float = 0.0
):
    """Build the ti.func of the attention of the `queries_per_kv` query heads of a KV head, over some of its pages.

    Arguments: the cache with the first vector of the head's keys, behind which its values lie; `a` with the first
    vector of the queries (one after the other); the pages first_page..last_page-1 of the positions from `begin`
    (which is in the first page of all, and 0 unless `windowed`) to `position`; offsets in `a`, with scratch at
    `scores`: queries_per_kv * context / 16 vectors. It writes, for head h, the sum over p of exp(s_p - m) v_p to the
    head_dim / 16 vectors from a[out + h head_dim / 16], and m and the sum of exp(s_p - m) to lanes 0 and 1 of
    a[softmax + h]. Scores are products times `scale` (default: 1 / sqrt(head_dim)); with a `cap` other than 0,
    cap tanh(score / cap).
    """
    head_dim, head_vectors, pages = shape.head_dim, shape.head_dim // 16, shape.context // 16
    together = max(1, SUMS // head_vectors)
    parties = [(first, min(together, queries_per_kv - first)) for first in range(0, queries_per_kv, together)]
    scale = head_dim**-0.5 if scale is None else scale
    multiply_add, _ = make_multiply_add()

    def make_add_products(count: int, side_by_side: int):
        chains = max(1, 4 // count)  # sums per head and page: one alone would wait for the latency of each addition

        @ti.func
        def add_products(cache: ti.template(), keys, a: ti.template(), query, parts: ti.template()):
            """Products of `count` queries with the keys of pages side by side. A page's sums have the same order with
            and without others beside it.
            """
            one = f32x16(1.0)  # times f16 gives f32; `ti.cast` of a vector aborts
            for four in range(head_dim // 4):
                vector = query + (four >> 2)
                lane = (four & 3) * 4
                for d in ti.static(range(4)):
                    page_keys = [
                        one * cache[keys + p * head_dim + 4 * four + d] for p in ti.static(range(side_by_side))
                    ]
                    for h in ti.static(range(count)):
                        q = f32x16(a[vector + h * head_vectors][lane + d])
                        for p in ti.static(range(side_by_side)):
                            multiply_add(parts[(side_by_side * h + p) * chains + d % chains], q, page_keys[p])

        return add_products

    def make_scores(count: int):
        chains = max(1, 4 // count)
        of_two, of_one = make_add_products(count, 2), make_add_products(count, 1)

        @ti.func
        def put_score(
            a: ti.template(), parts: ti.template(), first: ti.template(), page, begin, position, at
        ):  # fmt: skip
            """The score of a page, from its sums that begin at parts[first]."""
            score = parts[first]
            for c in ti.static(range(1, chains)):
                score += parts[first + c]
            if ti.static(cap > 0.0):
                score = cap - (2.0 * cap) / (exp_lanes(score * (2.0 * scale / cap)) + 1.0)
            else:
                score *= scale
            if page == position >> 4:
                last_lane = position & 15
                score = f32x16(*[ti.select(i <= last_lane, score[i], LOWEST) for i in ti.static(range(16))])
            if ti.static(windowed):
                lane = begin - page * 16
                if lane > 0:
                    score = f32x16(*[ti.select(i >= lane, score[i], LOWEST) for i in ti.static(range(16))])
            a[at + page] = score

        @ti.func
        def scores_of(
            cache: ti.template(), keys, a: ti.template(), query, first_page, last_page, begin, position, scores
        ):  # fmt: skip
            """Scores of `count` heads to a[scores + h pages + page]; positions that are not seen get LOWEST."""
            twos = (last_page - first_page) // 2
            for two in range(twos):
                page = first_page + 2 * two
                parts = [f32x16(0.0) for _ in ti.static(range(2 * count * chains))]
                of_two(cache, keys + page * head_dim, a, query, parts)
                for h in ti.static(range(count)):
                    for p in ti.static(range(2)):
                        first = ti.static((2 * h + p) * chains)
                        put_score(a, parts, first, page + p, begin, position, scores + h * pages)
            for page in range(first_page + 2 * twos, last_page):
                parts = [f32x16(0.0) for _ in ti.static(range(count * chains))]
                of_one(cache, keys + page * head_dim, a, query, parts)
                for h in ti.static(range(count)):
                    put_score(a, parts, ti.static(h * chains), page, begin, position, scores + h * pages)

        return scores_of

    def make_sums(count: int):
        @ti.func
        def sums_of(
            cache: ti.template(), values, first_page, last_page, begin, position, a: ti.template(), scores, out,
            softmax,
        ):  # fmt: skip
            """Weighted sums of the values for `count` heads, from their scores."""
            one = f32x16(1.0)
            highest = [f32x16(LOWEST) for _ in ti.static(range(count))]
            for page in range(first_page, last_page):
                for h in ti.static(range(count)):
                    highest[h] = ti.max(highest[h], a[scores + h * pages + page])
            most = [lane_max(highest[h]) for h in ti.static(range(count))]
            totals = [f32x16(0.0) for _ in ti.static(range(count))]
            sums = [f32x16(0.0) for _ in ti.static(range(count * head_vectors))]
            for page in range(first_page, last_page):
                seen = ti.min(16, position + 1 - page * 16)
                hidden = 0
                if ti.static(windowed):
                    hidden = ti.max(0, begin - page * 16)
                for h in ti.static(range(count)):
                    weight = exp_lanes(a[scores + h * pages + page] - most[h])
                    if seen < 16:
                        weight = f32x16(*[ti.select(i < seen, weight[i], 0.0) for i in ti.static(range(16))])
                    if ti.static(windowed):  # noqa: SIM102
                        if hidden > 0:
                            weight = f32x16(*[ti.select(i >= hidden, weight[i], 0.0) for i in ti.static(range(16))])
                    totals[h] += weight
                    a[scores + h * pages + page] = weight
                for i in range(hidden, seen):
                    for d in ti.static(range(head_vectors)):
                        v = one * cache[values + (page * 16 + i) * head_vectors + d]
                        for h in ti.static(range(count)):
                            p = f32x16(value(a, (scores + h * pages + page) * 16 + i))
                            multiply_add(sums[h * head_vectors + d], p, v)
            for h in ti.static(range(count)):
                for d in ti.static(range(head_vectors)):
                    a[out + h * head_vectors + d] = sums[h * head_vectors + d]
                a[softmax + h][0] = most[h]
                a[softmax + h][1] = lane_sum(totals[h])

        return sums_of

    score_funcs = [make_scores(count) for _, count in parties]
    sum_funcs = [make_sums(count) for _, count in parties]

    @ti.func
    def attend(
        cache: ti.template(), keys, a: ti.template(), query, first_page, last_page, begin, position,
        offsets: ti.template(),
    ):  # fmt: skip
        values = keys + shape.half_stride
        for party in ti.static(range(len(parties))):
            first = ti.static(parties[party][0])
            scores = offsets.scores + first * pages
            out = offsets.out + first * head_vectors
            queries, softmax = query + first * head_vectors, offsets.softmax + first
            score_funcs[party](cache, keys, a, queries, first_page, last_page, begin, position, scores)
            sum_funcs[party](cache, values, first_page, last_page, begin, position, a, scores, out, softmax)

    return attend
