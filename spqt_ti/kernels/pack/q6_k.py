"""The Q6_K quantiser for the CPU, byte-identical to `formats.q6_k` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q6_k
from spqt_ti.kernels.pack.symmetric import Shape, make_closest
from spqt_ti.kernels.pack.tiles import F16_MAX, ROUND, extreme, half, lanes, make_packer, outside, store_half

__all__ = ["PACKER"]

SUB_BLOCKS = q6_k.VALUES // q6_k.SUB_BLOCK
EMPTY = 1e-15  # ggml's GROUP_MAX_EPS: below it a sub-block is zero
# What a fit compares is of the sixth power of the values: outside these it may be denormal or infinite.
SMALL, LARGE_SQUARES = 1e-6, 1e9

# Scratch: the tile (later its quants), then for each sub-block its scale (later a multiple of d) and the divisor of its
# best fit (0 for an empty one), then d.
SCALE = q6_k.VALUES
DIVISOR = SCALE + SUB_BLOCKS
D = DIVISOR + SUB_BLOCKS


@ti.func
def quantise(scratch: ti.template(), here):
    """Replace the values by 0..63 and find scales; returns the lanes it cannot do."""
    bad = lanes(0.0)
    for j in range(SUB_BLOCKS):
        bad = ti.max(bad, _search(scratch, here, j))
    bad = ti.max(bad, _scale(scratch, here))
    for j in range(SUB_BLOCKS):
        bad = ti.max(bad, _requantise(scratch, here, j))
    return bad


@ti.func
def _levels(v):
    """-32..31. The clamp may come first: its bounds are integers."""
    return ti.min(ti.max(v, -32.0), 31.0) + ROUND - ROUND


@ti.func
def _search(scratch: ti.template(), here, j):
    """Scale and divisor of the best fit of sub-block `j`, as `formats.q6_k._search`; returns the lanes it cannot do."""
    tile = here + j * q6_k.SUB_BLOCK
    zero, one = lanes(0.0), lanes(1.0)
    size = zero
    most = zero  # the value of largest magnitude, the first among equals
    squares = zero
    for i in range(q6_k.SUB_BLOCK):
        x = scratch[tile + i]
        magnitude = ti.max(x, 0.0 - x)
        larger = magnitude > size
        most = ti.select(larger, x, most)
        size = ti.select(larger, magnitude, size)
        squares += x * x  # catches NaN, which comparisons may lose
    divisor = -32.0 / most
    kept = divisor
    scale = zero
    best = zero
    for attempt in range(19):
        # 0, then -9..-1 and 1..9.
        step = ti.select(attempt == 0, 0, ti.select(attempt < 10, attempt - 10, attempt - 9))
        if attempt > 0:
            divisor = (0.0 - (32.0 + 0.1 * ti.cast(step, ti.f32))) / most
        sum_lx = zero
        sum_l2 = zero
        for i in range(q6_k.SUB_BLOCK):
            x = scratch[tile + i]
            w = x * x
            level = _levels(divisor * x)
            sum_lx += w * x * level
            sum_l2 += w * level * level
        fit = sum_lx / sum_l2
        if attempt == 0:
            scale = ti.select(sum_l2 > 0.0, fit, zero)
            best = scale * sum_lx
        else:
            better = (sum_l2 > 0.0) & (sum_lx * sum_lx > best * sum_l2)
            kept = ti.select(better, divisor, kept)
            scale = ti.select(better, fit, scale)
            best = ti.select(better, fit * sum_lx, best)
    empty = size < EMPTY
    scratch[here + SCALE + j] = ti.select(empty, zero, scale)
    scratch[here + DIVISOR + j] = ti.select(empty, zero, kept)
    small = ti.select(empty, zero, ti.select(size >= SMALL, zero, one))
    return ti.select(squares < LARGE_SQUARES, small, one)


@ti.func
def _scale(scratch: ti.template(), here):
    """Replace the 16 scales by 8-bit multiples of d, and keep d; returns the lanes it cannot do."""
    zero, one = lanes(0.0), lanes(1.0)
    largest = extreme(scratch, here + SCALE, SUB_BLOCKS)
    size = ti.max(largest, 0.0 - largest)
    empty = size < EMPTY
    inverse = -128.0 / largest
    d = half(ti.select(empty, zero, 1.0 / inverse))
    for j in range(SUB_BLOCKS):
        v = inverse * scratch[here + SCALE + j]
        scratch[here + SCALE + j] = ti.select(empty, zero, ti.min(v + ROUND - ROUND, 127.0))
    scratch[here + D] = d
    return ti.select((d <= F16_MAX) & (d >= -F16_MAX), zero, one)


@ti.func
def _requantise(scratch: ti.template(), here, j):
    """Overwrite sub-block `j` of the tile with its final quants (as floats); returns the lanes it cannot do."""
    tile = here + j * q6_k.SUB_BLOCK
    step = scratch[here + D] * scratch[here + SCALE + j]
    divisor = scratch[here + DIVISOR + j]
    zero = lanes(0.0)
    keep = step == 0.0
    bad = zero
    for i in range(q6_k.SUB_BLOCK):
        x = scratch[tile + i]
        v = x / step
        bad = ti.max(bad, outside(v))
        searched = ti.select(divisor == 0.0, zero, _levels(divisor * x) + 32.0)
        scratch[tile + i] = ti.select(keep, searched, _levels(v) + 32.0)
    return ti.select(keep, zero, bad)


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """Low nibbles, high pairs, scales of the first `units` halves, then d."""
    for h in range(units):
        for i in range(32):
            q0 = ti.cast(scratch[here + 128 * h + i][lane], ti.i32)
            q1 = ti.cast(scratch[here + 128 * h + 32 + i][lane], ti.i32)
            q2 = ti.cast(scratch[here + 128 * h + 64 + i][lane], ti.i32)
            q3 = ti.cast(scratch[here + 128 * h + 96 + i][lane], ti.i32)
            out[at + 64 * h + i] = ti.cast((q0 & 15) | ((q2 & 15) << 4), ti.u8)
            out[at + 64 * h + 32 + i] = ti.cast((q1 & 15) | ((q3 & 15) << 4), ti.u8)
            high = (q0 >> 4) | ((q1 >> 4) << 2) | ((q2 >> 4) << 4) | ((q3 >> 4) << 6)
            out[at + 64 * units + 32 * h + i] = ti.cast(high, ti.u8)
    for j in range(8 * units):
        scale = ti.cast(scratch[here + SCALE + j][lane], ti.i32)
        out[at + 96 * units + j] = ti.cast(scale & 255, ti.u8)
    store_half(out, at + 104 * units, scratch[here + D][lane])


@ti.func
def value(scratch: ti.template(), here, k):
    """What value `k` has become."""
    return scratch[here + D] * scratch[here + SCALE + k // q6_k.SUB_BLOCK] * (scratch[here + k] - 32.0)


CLOSEST = make_closest(Shape(q6_k.VALUES, q6_k.SUB_BLOCK, 32, 128, SCALE, D))
PACKER = make_packer(q6_k.SCHEME, D + 1, quantise, store, value, CLOSEST)
