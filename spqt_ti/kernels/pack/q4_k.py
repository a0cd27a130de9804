"""The Q4_K quantiser for the CPU, byte-identical to `formats.q4_k` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q4_k
from spqt_ti.kernels.pack.tiles import F16_MAX, ROUND, half, lanes, make_packer, outside, store_half

__all__ = ["PACKER"]

STEPS = 21
HUGE = 1e38
# Below these, an error term (weight * difference**2, where a difference is at least a rounding error) may be denormal.
TINY = 1e-9
TINY_RANGE = 1e-6

# Scratch, in vectors: the tile (later its quants), then a sub-block's weights and levels, then what the search found
# for each sub-block, then d and dmin.
TILE, WEIGHT, LEVEL, SCALE, LOW, KEPT_DIVISOR, KEPT_LOW, D, DMIN, SCRATCH = (
    0, 256, 288, 320, 328, 336, 344, 352, 353, 354,
)  # fmt: skip


@ti.func
def quantise(scratch: ti.template(), here):
    """Replace the values by 0..15 and find scales and minima; returns the lanes it cannot do."""
    bad = lanes(0.0)
    for j in range(8):
        bad = ti.max(bad, _search(scratch, here, j))
    d, multiple_bad = _six_bits(scratch, here + SCALE)
    dmin, min_bad = _six_bits(scratch, here + LOW)
    bad = ti.max(bad, ti.max(multiple_bad, min_bad))
    for j in range(8):
        bad = ti.max(bad, _requantise(scratch, here, j, d, dmin))
    scratch[here + D] = d
    scratch[here + DMIN] = dmin
    return bad


@ti.func
def _levels(x, divisor, low):
    """Quants 0..15 as floats. The clamp may come first: it keeps the sum small enough to round."""
    return ti.min(ti.max(divisor * (x - low), 0.0), 15.0) + ROUND - ROUND


@ti.func
def _search(scratch: ti.template(), here, j):
    """Scale, minimum and best fit of sub-block `j`, as `formats.q4_k._search`; returns the lanes it cannot do."""
    tile = here + TILE + j * 32
    square = lanes(0.0)
    high = scratch[tile]
    lowest = scratch[tile]
    for i in range(32):
        x = scratch[tile + i]
        square += x * x
        high = ti.max(high, x)
        lowest = ti.min(lowest, x)
    average = ti.sqrt(square / 32.0)
    sum_w = lanes(0.0)
    sum_x = lanes(0.0)
    smallest = lanes(1.0)
    for i in range(32):
        x = scratch[tile + i]
        size = ti.max(x, 0.0 - x)
        smallest = ti.min(smallest, ti.select(size > 0.0, size, lanes(1.0)))
        w = average + size
        scratch[here + WEIGHT + i] = w
        sum_w += w
        sum_x += w * x
    low = ti.min(lowest, 0.0)
    flat = high == low
    divisor = 15.0 / (high - low)
    scale = 1.0 / divisor
    kept_divisor = divisor
    kept_low = low
    # The sum of squares catches NaN, which comparisons may lose, and infinity.
    bad = ti.select((square < HUGE) & (smallest >= TINY) & (high - low >= TINY_RANGE), lanes(0.0), lanes(1.0))
    bad = ti.max(bad, ti.max(outside(divisor * (high - low)), outside(divisor * (lowest - low))))
    best = lanes(0.0)
    for i in range(32):
        x = scratch[tile + i]
        difference = scale * _levels(x, divisor, low) + low - x
        best += scratch[here + WEIGHT + i] * (difference * difference)
    for step in range(STEPS):
        divisor = (-1.0 + 0.1 * ti.cast(step, ti.f32) + 15.0) / (high - low)
        bad = ti.max(bad, ti.max(outside(divisor * (high - low)), outside(divisor * (lowest - low))))
        sum_l = lanes(0.0)
        sum_l2 = lanes(0.0)
        sum_xl = lanes(0.0)
        for i in range(32):
            x = scratch[tile + i]
            level = _levels(x, divisor, low)
            scratch[here + LEVEL + i] = level
            wl = scratch[here + WEIGHT + i] * level
            sum_l += wl
            sum_l2 += wl * level
            sum_xl += wl * x
        det = sum_w * sum_l2 - sum_l * sum_l
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        new_scale = ti.select(new_low > 0.0, sum_xl / sum_l2, (sum_w * sum_xl - sum_x * sum_l) / det)
        new_low = ti.min(new_low, 0.0)
        error = lanes(0.0)
        for i in range(32):
            difference = new_scale * scratch[here + LEVEL + i] + new_low - scratch[tile + i]
            error += scratch[here + WEIGHT + i] * (difference * difference)
        better = (det > 0.0) & (error < best)
        kept_divisor = ti.select(better, divisor, kept_divisor)
        kept_low = ti.select(better, low, kept_low)
        best = ti.select(better, error, best)
        scale = ti.select(better, new_scale, scale)
        low = ti.select(better, new_low, low)
    zero = lanes(0.0)
    scratch[here + SCALE + j] = ti.select(flat, zero, scale)
    scratch[here + LOW + j] = 0.0 - low
    scratch[here + KEPT_DIVISOR + j] = ti.select(flat, zero, kept_divisor)
    scratch[here + KEPT_LOW + j] = ti.select(flat, zero, kept_low)
    return ti.select(flat & (square < HUGE) & (smallest >= TINY), zero, bad)


@ti.func
def _six_bits(scratch: ti.template(), parts):
    """Replace 8 scales (or minima) by their 6-bit multiples; return the f16-rounded super-scale and the bad lanes."""
    largest = lanes(0.0)
    for j in range(8):
        largest = ti.max(largest, scratch[parts + j])
    inverse = ti.select(largest > 0.0, 63.0 / largest, lanes(0.0))
    bad = lanes(0.0)
    for j in range(8):
        v = inverse * scratch[parts + j]
        # Below zero ggml wraps around in a byte: rare enough to leave to NumPy.
        bad = ti.max(bad, ti.select((v >= -0.5) & (v < 64.0), lanes(0.0), lanes(1.0)))
        scratch[parts + j] = ti.min(ti.max(v, 0.0), 63.0) + ROUND - ROUND
    rounded = half(largest / 63.0)
    return rounded, ti.max(bad, ti.select(rounded <= F16_MAX, lanes(0.0), lanes(1.0)))


@ti.func
def _requantise(scratch: ti.template(), here, j, d, dmin):
    """Overwrite sub-block `j` of the tile with its final quants (as floats); return the bad lanes."""
    tile = here + TILE + j * 32
    step = d * scratch[here + SCALE + j]
    offset = dmin * scratch[here + LOW + j]
    divisor = scratch[here + KEPT_DIVISOR + j]
    low = scratch[here + KEPT_LOW + j]
    keep = step == 0.0
    bad = lanes(0.0)
    for i in range(32):
        x = scratch[tile + i]
        v = (x + offset) / step
        bad = ti.max(bad, outside(v))
        level = ti.min(ti.max(v, 0.0), 15.0) + ROUND - ROUND
        scratch[tile + i] = ti.select(keep, _levels(x, divisor, low), level)
    return ti.select(keep, lanes(0.0), bad)


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """The header, then the quants of the first `units` pairs of sub-blocks."""
    store_half(out, at, scratch[here + D][lane])
    store_half(out, at + 2, scratch[here + DMIN][lane])
    for j in range(4):
        scale = ti.cast(scratch[here + SCALE + j][lane], ti.i32)
        low = ti.cast(scratch[here + LOW + j][lane], ti.i32)
        scale4 = ti.cast(scratch[here + SCALE + 4 + j][lane], ti.i32)
        low4 = ti.cast(scratch[here + LOW + 4 + j][lane], ti.i32)
        out[at + 4 + j] = ti.cast(scale | ((scale4 >> 4) << 6), ti.u8)
        out[at + 8 + j] = ti.cast(low | ((low4 >> 4) << 6), ti.u8)
        out[at + 12 + j] = ti.cast((scale4 & 15) | ((low4 & 15) << 4), ti.u8)
    for k in range(units):
        for i in range(32):
            a = scratch[here + TILE + k * 64 + i][lane]
            b = scratch[here + TILE + k * 64 + 32 + i][lane]
            out[at + 16 + k * 32 + i] = ti.cast(a + 16.0 * b, ti.u8)


PACKER = make_packer(q4_k.SCHEME, SCRATCH, quantise, store)
