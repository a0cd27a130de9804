"""The Q8_0 quantiser for the CPU, byte-identical to `formats.q8_0` (and so to ggml), for `tiles.make_packer`."""

from spqt_ti.backend import ti
from spqt_ti.formats import q8_0
from spqt_ti.kernels.pack.tiles import F16_MAX, ROUND, half, lanes, make_packer, store_half

__all__ = ["PACKER"]

HUGE = 1e38
TINY = 1e-30  # below it scales and their inverses may be denormal
D = q8_0.VALUES  # scratch: the tile, later its quants, then the scale


@ti.func
def quantise(scratch: ti.template(), here):
    """Replace the values by -127..127; returns the lanes it cannot do: NaN, infinity, very large or small values."""
    zero, one = lanes(0.0), lanes(1.0)
    most = zero
    total = zero
    for i in range(q8_0.VALUES):
        x = scratch[here + i]
        size = ti.max(x, 0.0 - x)
        most = ti.max(most, size)
        total += size  # catches NaN, which comparisons may lose
    d = most / 127.0
    inverse = ti.select(most > 0.0, 1.0 / d, zero)
    rounded = half(d)
    scratch[here + D] = rounded
    for i in range(q8_0.VALUES):
        v = scratch[here + i] * inverse
        size = ti.max(v, 0.0 - v)
        level = size + ROUND - ROUND
        level = ti.select(size - level >= 0.5, level + 1.0, level)  # halves away from zero
        scratch[here + i] = ti.select(v < 0.0, 0.0 - level, level)
    small = ti.select(most >= TINY, zero, ti.select(most > 0.0, one, zero))
    return ti.max(small, ti.select((total < HUGE) & (rounded <= F16_MAX), zero, one))


@ti.func
def store(scratch: ti.template(), here, lane, units, out: ti.template(), at):
    """The scale, then the quants; a block is never cut."""
    store_half(out, at, scratch[here + D][lane])
    for i in range(q8_0.VALUES):
        out[at + 2 + i] = ti.cast(ti.cast(scratch[here + i][lane], ti.i32) & 255, ti.u8)


@ti.func
def value(scratch: ti.template(), here, k):
    """What value `k` has become."""
    return scratch[here + D] * scratch[here + k]


PACKER = make_packer(q8_0.SCHEME, D + 1, quantise, store, value)
