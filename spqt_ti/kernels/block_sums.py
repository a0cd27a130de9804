"""What a block of active columns adds to the 256 sums of one band: the inner loop of the zigzag GEMV.

There are two of them. The exact one multiplies in f32. Where the CPU has AVX-512 VNNI, activation x scale is rounded to
16 bits instead, with a step of its own for every sub-block of every block of columns (the largest value is 32767
steps), and one instruction multiplies and adds two columns of 16 rows: half the time per superblock, and an error of
less than half a step x nibble per weight (see `STEP_ERROR`).

The sums of a band are 17 vectors of scratch: 16 sums and their offsets. sums[8 v + 2 byte + high], lane i: row 128 v +
64 (i / 8) + 32 high + 4 (i % 8) + byte. Lanes 8-15 of the offsets: sum of x dmin min of the eight sub-blocks.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels import native
from spqt_ti.kernels.multiply_add import make_multiply_add
from spqt_ti.kernels.vectors import f32x8, f32x16, i32x8, i32x16, u32x16, value
from spqt_ti.kernels.zigzag import minima_of, scales_of

BLOCK_COLUMNS = 32
SUM_VECTORS = 17  # of a band
STEP_ERROR = 0.5 / 32767  # of x d scale, relative to its largest magnitude in the block of columns


def uses_integers(exact: bool) -> bool:
    """True where `make_add_block` gives the 16-bit variant."""
    return not exact and native.available("x86_64_vnni")


def make_scales_and_minima():
    """Build the ti.func (header, x) -> f32 x 16: x d scale of the eight sub-blocks, then x dmin min."""
    helpers = native.load()
    fast = helpers is not None

    @ti.func
    def scales_and_minima(header, x):
        both = f32x16(0.0)
        if ti.static(fast):
            h = header
            xj = x
            helpers.scales_and_minima(h, xj, both)
        else:
            scales = x * scales_of(header)
            minima = x * minima_of(header)
            parts = [scales, minima]
            both = f32x16(*[parts[i // 8][i % 8] for i in ti.static(range(16))])
        return both

    return scales_and_minima


@ti.func
def per_row(eight, v: ti.template(), high: ti.template()):
    """Values of the eight sub-blocks -> 16 lanes, for the nibbles `high` of words vector v."""
    return f32x16(*[eight[4 * v + high + 2 * (i // 8)] for i in ti.static(range(16))])


def make_add_block(ask, exact: bool):
    """Build the ti.func that adds the active columns low..high-1 (at most BLOCK_COLUMNS) to the sums of a band.

    Arguments: quants and headers with the panel's first vector in each; the panel's height and the band in it; x with
    its first vector; the active list; low, high; scratch with the first vector of the band's sums and of
    BLOCK_COLUMNS + 1 more; the state of `ask`, which is called once per column to fetch what comes later.

    Returns it and the ti.func `write_rows(a, sums_at, out)` that turns a band's sums into the rows a[out..out+15].
    """
    add_block, units = _make_add_block_i16(ask) if uses_integers(exact) else _make_add_block_f32(ask)

    @ti.func
    def write_rows(a: ti.template(), sums_at, out):
        offsets = a[sums_at + 16]
        minima = f32x8(*[offsets[8 + i] for i in ti.static(range(8))])
        for v in ti.static(range(2)):
            for high in ti.static(range(2)):
                offset = per_row(minima, v, high)
                sums = sums_at + 8 * v + high
                y = [a[sums + 2 * b] * units[8 * v + high + 2 * b] - offset for b in ti.static(range(4))]
                for m in ti.static(range(4)):  # 16 rows in order: lanes 4m..4m+3 of the four sums
                    place = out + 8 * v + 4 * (m // 2) + 2 * high + m % 2
                    a[place] = f32x16(*[y[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])

    return add_block, write_rows


def _make_add_block_f32(ask):
    multiply_add, _ = make_multiply_add()
    scales_and_minima = make_scales_and_minima()

    @ti.func
    def add_block(
        quants: ti.template(), quants_from, headers: ti.template(), headers_from, height, band,
        x: ti.template(), x_base, active: ti.template(), low, high, a: ti.template(), sums_at, spare,
        ahead: ti.template(),
    ):  # fmt: skip
        sums = [a[sums_at + i] for i in ti.static(range(16))]
        offsets = a[sums_at + 16]
        for j in range(low, high):
            ask(active, ahead)
            column = active[j]
            place = column * height + band
            both = scales_and_minima(headers[headers_from + place], value(x, x_base * 16 + column))
            offsets += both
            for v in ti.static(range(2)):
                words = quants[quants_from + 2 * place + v]
                for half in ti.static(range(2)):
                    scale = per_row(both, v, half)
                    for byte in ti.static(range(4)):
                        nibbles = (words & (15 << (8 * byte))) * 1.0
                        multiply_add(sums[8 * v + 2 * byte + half], nibbles, scale)
                    words = words >> 4
        for i in ti.static(range(16)):
            a[sums_at + i] = sums[i]
        a[sums_at + 16] = offsets

    return add_block, [2.0 ** (-8 * (i // 2 % 4)) for i in range(16)]


def _make_add_block_i16(ask):
    multiply_add, _ = make_multiply_add()
    scales_and_minima = make_scales_and_minima()
    dots = native.load_vnni()

    @ti.func
    def add_block(
        quants: ti.template(), quants_from, headers: ti.template(), headers_from, height, band,
        x: ti.template(), x_base, active: ti.template(), low, high, a: ti.template(), sums_at, spare,
        ahead: ti.template(),
    ):  # fmt: skip
        offsets = f32x16(0.0)
        largest = f32x8(1e-30)
        for j in range(low, high):
            ask(active, ahead)
            column = active[j]
            header = headers[headers_from + column * height + band]
            both = scales_and_minima(header, value(x, x_base * 16 + column))
            offsets += both
            dots.widen(largest, both)
            a[spare + j - low] = both
        a[spare + high - low] = f32x16(0.0)  # partner of the last column of an odd number
        steps = 32767.0 / largest
        low_halves = u32x16(0xFFFF)
        nibbles = [u32x16(0x000F000F), u32x16(0x00F000F0)]
        dots.keep16(low_halves)
        for half in ti.static(range(2)):
            dots.keep16(nibbles[half])
        scale_total = i32x8(0)
        totals = [i32x16(0) for _ in ti.static(range(16))]
        for pair in range((high - low + 1) // 2):
            j = low + 2 * pair
            first = active[j] * height + band
            second = active[ti.min(j + 1, high - 1)] * height + band
            left = a[spare + 2 * pair]
            right = a[spare + 2 * pair + 1]
            scales = i32x8(0)
            dots.pair16(left, right, steps, scales)
            dots.add2(scale_total, scales)
            for v in ti.static(range(2)):
                one = quants[quants_from + 2 * first + v]
                two = quants[quants_from + 2 * second + v]
                bytes01 = (one & low_halves) | (two << 16)  # of both columns, in the two halves of a lane
                bytes23 = (one >> 16) | (two & ~low_halves)
                parts = [bytes01, bytes01 >> 8, bytes23, bytes23 >> 8]
                for half in ti.static(range(2)):
                    scale = i32x16(*[scales[4 * v + half + 2 * (i // 8)] for i in ti.static(range(16))])
                    for byte in ti.static(range(4)):
                        pair_nibbles = parts[byte] & nibbles[half]
                        dots.dot2(totals[8 * v + 2 * byte + half], pair_nibbles, scale)
        # What rounding added to the scales counts 7.5 times, the mean of a nibble: taken off, it leaves half the error.
        added = (largest * (1.0 / 32767.0)) * scale_total - f32x8(*[offsets[i] for i in ti.static(range(8))])
        lanes = [f32x8(0.0), 7.5 * added]
        a[sums_at + 16] = a[sums_at + 16] + offsets + f32x16(*[lanes[i // 8][i % 8] for i in ti.static(range(16))])
        for v in ti.static(range(2)):
            for half in ti.static(range(2)):
                step = per_row(largest, v, half) * (1.0 / 32767.0 / 16.0**half)
                for byte in ti.static(range(4)):
                    place = sums_at + 8 * v + 2 * byte + half
                    total = a[place]
                    multiply_add(total, totals[8 * v + 2 * byte + half] * 1.0, step)
                    a[place] = total

    return add_block, [1.0] * 16
