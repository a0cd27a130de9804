"""The Q3_K quantiser for the CPU, byte-identical to `formats.q3_k` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q3_k
from spqt_ti.kernels.pack.symmetric import Shape, make_closest
from spqt_ti.kernels.pack.tiles import (
    F16_MAX,
    ROUND,
    extreme,
    half,
    lanes,
    make_packer,
    outside,
    store_half,
    store_pairs,
)

__all__ = ["PACKER"]

SUB_BLOCKS = q3_k.VALUES // q3_k.SUB_BLOCK
PASSES = 5
EMPTY = 1e-15  # ggml's GROUP_MAX_EPS: below it a sub-block is zero
# What a fit compares is of the eighth power of the values: outside these it may be denormal or infinite.
SMALL, LARGE_SQUARES = 1e-4, 1e6

# Scratch: the tile (later its quants), then a sub-block's levels, one after the other for all of them (the quants of
# the search), then the scales (later multiples of d), then d.
LEVEL = q3_k.VALUES
SCALE = LEVEL + q3_k.VALUES
D = SCALE + SUB_BLOCKS


@ti.func
def quantise(scratch: ti.template(), here):
    """Replace the values by 0..7 and find scales; returns the lanes it cannot do."""
    bad = lanes(0.0)
    for j in range(SUB_BLOCKS):
        bad = ti.max(bad, _search(scratch, here, j))
    bad = ti.max(bad, _scale(scratch, here))
    for j in range(SUB_BLOCKS):
        bad = ti.max(bad, _requantise(scratch, here, j))
    return bad


@ti.func
def _levels(v):
    """-4..3. The clamp may come first: its bounds are integers."""
    return ti.min(ti.max(v, -4.0), 3.0) + ROUND - ROUND


@ti.func
def _search(scratch: ti.template(), here, j):
    """Scale and levels of sub-block `j`, as `formats.q3_k._search`; returns the lanes it cannot do."""
    tile = here + j * q3_k.SUB_BLOCK
    kept = tile + LEVEL
    zero, one = lanes(0.0), lanes(1.0)
    size = zero
    most = zero  # the value of largest magnitude, the first among equals
    squares = zero
    for i in range(q3_k.SUB_BLOCK):
        x = scratch[tile + i]
        magnitude = ti.max(x, 0.0 - x)
        larger = magnitude > size
        most = ti.select(larger, x, most)
        size = ti.select(larger, magnitude, size)
        squares += x * x  # catches NaN, which comparisons may lose
    divisor = -4.0 / most
    sum_lx = zero
    sum_l2 = zero
    for i in range(q3_k.SUB_BLOCK):
        x = scratch[tile + i]
        w = x * x
        level = _levels(divisor * x)
        scratch[kept + i] = level
        sum_lx += w * x * level
        sum_l2 += w * level * level
    bad = zero
    for _ in range(PASSES):
        for i in range(q3_k.SUB_BLOCK):
            x = scratch[tile + i]
            w = x * x
            level = scratch[kept + i]
            lx = sum_lx - w * x * level
            l2 = sum_l2 - w * level * level
            v = x * l2 / lx
            bad = ti.max(bad, ti.select(lx > 0.0, outside(v), zero))
            tried = _levels(v)
            new_lx = lx + w * x * tried
            new_l2 = l2 + w * tried * tried
            more = new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            better = (lx > 0.0) & (tried != level) & (new_l2 > 0.0) & more
            scratch[kept + i] = ti.select(better, tried, level)
            sum_lx = ti.select(better, new_lx, sum_lx)
            sum_l2 = ti.select(better, new_l2, sum_l2)
    empty = size < EMPTY
    scratch[here + SCALE + j] = ti.select(empty, zero, ti.select(sum_l2 > 0.0, sum_lx / sum_l2, zero))
    for i in range(q3_k.SUB_BLOCK):
        scratch[kept + i] = ti.select(empty, zero, scratch[kept + i] + 4.0)
    bad = ti.select(empty, zero, ti.select(size >= SMALL, bad, one))
    return ti.select(squares < LARGE_SQUARES, bad, one)


@ti.func
def _scale(scratch: ti.template(), here):
    """Replace the 16 scales by 6-bit multiples of d, and keep d; returns the lanes it cannot do."""
    zero, one = lanes(0.0), lanes(1.0)
    largest = extreme(scratch, here + SCALE, SUB_BLOCKS)
    empty = largest == 0.0
    inverse = -32.0 / largest
    d = half(ti.select(empty, zero, 1.0 / inverse))
    for j in range(SUB_BLOCKS):
        v = inverse * scratch[here + SCALE + j]
        multiple = ti.min(ti.max(v, -32.0), 31.0) + ROUND - ROUND
        scratch[here + SCALE + j] = ti.select(empty, lanes(-32.0), multiple)
    scratch[here + D] = d
    return ti.select((d <= F16_MAX) & (d >= -F16_MAX), zero, one)


@ti.func
def _requantise(scratch: ti.template(), here, j):
    """Overwrite sub-block `j` of the tile with its final quants (as floats); returns the lanes it cannot do."""
    tile = here + j * q3_k.SUB_BLOCK
    step = scratch[here + D] * scratch[here + SCALE + j]
    zero = lanes(0.0)
    keep = step == 0.0
    bad = zero
    for i in range(q3_k.SUB_BLOCK):
        v = scratch[tile + i] / step
        bad = ti.max(bad, outside(v))
        scratch[tile + i] = ti.select(keep, scratch[tile + LEVEL + i], _levels(v) + 4.0)
    return ti.select(keep, zero, bad)


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """Top bits, low pairs of the first `units` halves, scales, d."""
    for i in range(32):
        high = 0
        for j in range(8):
            high |= (ti.cast(scratch[here + 32 * j + i][lane], ti.i32) >> 2) << j
        out[at + i] = ti.cast(high, ti.u8)
    store_pairs(scratch, here, lane, units, out, at + 32)
    scales = at + 32 + 32 * units
    for j in range(8):
        low = ti.cast(scratch[here + SCALE + j][lane], ti.i32) + 32
        high = ti.cast(scratch[here + SCALE + 8 + j][lane], ti.i32) + 32
        out[scales + j] = ti.cast((low & 15) | ((high & 15) << 4), ti.u8)
    for i in range(4):
        tops = 0
        for k in range(4):
            scale = ti.cast(scratch[here + SCALE + 4 * k + i][lane], ti.i32) + 32
            tops |= (scale >> 4) << (2 * k)
        out[scales + 8 + i] = ti.cast(tops, ti.u8)
    store_half(out, scales + 12, scratch[here + D][lane])


@ti.func
def value(scratch: ti.template(), here, k):
    """What value `k` has become."""
    return scratch[here + D] * scratch[here + SCALE + k // q3_k.SUB_BLOCK] * (scratch[here + k] - 4.0)


CLOSEST = make_closest(Shape(q3_k.VALUES, q3_k.SUB_BLOCK, 4, 32, SCALE, D))
PACKER = make_packer(q3_k.SCHEME, D + 1, quantise, store, value, CLOSEST)
