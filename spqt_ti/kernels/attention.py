"""Grouped-query attention of one query over the KV cache, with 16 positions or 16 values of a head in the lanes.

Keys lie transposed in blocks of 16 positions, so that the scores of 16 positions are a sum of (one query value) *
(one vector); values lie as they are, so that a weighted sum needs no transposition either. Sizes in vectors, per
layer and KV head:

    keys    [context / 16][head_dim]            lane = position in its block
    values  [context][head_dim / 16]            lane = value in its vector
"""

from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.vectors import exp_lanes, f32x16, lane_max, lane_sum, value

LOWEST = -3.0e38


@dataclass(frozen=True)
class CacheShape:
    """Geometry of the KV cache; `context` is a multiple of 16. Keys and values of one layer and head are adjacent."""

    layers: int
    kv_heads: int
    head_dim: int
    context: int

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


@ti.func
def write_key(cache: ti.template(), keys, position, a: ti.template(), head, head_dim: ti.template()):
    """Put the key a[head : head + head_dim] (value index) into its lane of the transposed block."""
    block = keys + (position >> 4) * head_dim
    for d in range(head_dim):
        cache[block + d][position & 15] = value(a, head + d)


@ti.func
def write_value(cache: ti.template(), values, position, a: ti.template(), head, head_dim: ti.template()):
    """Copy the value vector that begins at vector a[head]."""
    for d in range(head_dim // 16):
        cache[values + position * (head_dim // 16) + d] = a[head + d]


@ti.func
def attend(
    cache: ti.template(), keys, values, a: ti.template(), query, first_block, last_block, position, scores, out,
    head_dim: ti.template(),
):  # fmt: skip
    """Attention of one query over the blocks first_block..last_block-1, not normalised.

    The query begins at vector a[query]; `scores` is scratch of one vector per block, `out` takes the head_dim / 16
    vectors of sum_p exp(s_p - m) v_p. Positions beyond `position` weigh nothing. Returns (m, sum_p exp(s_p - m)).
    """
    scale = ti.static(1.0 / head_dim**0.5)
    highest = f32x16(LOWEST)
    for block in range(first_block, last_block):
        # Four sums: one would wait for the latency of each addition.
        parts = [f32x16(0.0) for _ in ti.static(range(4))]
        for d in range(head_dim // 4):
            for k in ti.static(range(4)):
                parts[k] += (value(a, query * 16 + 4 * d + k) * scale) * cache[keys + block * head_dim + 4 * d + k]
        score = (parts[0] + parts[1]) + (parts[2] + parts[3])
        if block == position >> 4:
            last_lane = position & 15
            score = f32x16(*[ti.select(i <= last_lane, score[i], LOWEST) for i in ti.static(range(16))])
        a[scores + block] = score
        highest = ti.max(highest, score)
    m = lane_max(highest)
    total = f32x16(0.0)
    sums = [f32x16(0.0) for _ in ti.static(range(head_dim // 16))]
    for block in range(first_block, last_block):
        weight = exp_lanes(a[scores + block] - m)
        count = ti.min(16, position + 1 - block * 16)
        if count < 16:
            weight = f32x16(*[ti.select(i < count, weight[i], 0.0) for i in ti.static(range(16))])
        total += weight
        a[scores + block] = weight
        for i in range(count):
            p = value(a, (scores + block) * 16 + i)
            for d in ti.static(range(head_dim // 16)):
                sums[d] += p * cache[values + (block * 16 + i) * (head_dim // 16) + d]
    for d in ti.static(range(head_dim // 16)):
        a[out + d] = sums[d]
    return m, lane_sum(total)
