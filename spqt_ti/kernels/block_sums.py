"""What a block of active columns adds to the 256 sums of each of up to four bands: the inner loop of the zigzag GEMV.

There are two of them. The exact one multiplies in f32. Where the CPU has AVX-512 VNNI, x d is rounded to 16 bits
instead, and so is its product with a scale, and one instruction multiplies and adds two columns of 16 rows: half the
time per superblock. A step is 1/32767 of the largest x d of a band in a block of columns, times 63, the largest scale.
A weight is off by at most one step x |nibble - 7.5|: what both roundings add for an average nibble is taken off again.

The sums of a group of bands are GROUP_VECTORS vectors of scratch: 16 per band, sums[8 v + 2 byte + high], lane i: row
128 v + 64 (i / 8) + 32 high + 4 (i % 8) + byte; then what the minima add up to, four vectors in an order that
differs between the two.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels import native
from spqt_ti.kernels.multiply_add import make_multiply_add
from spqt_ti.kernels.vectors import f32x8, f32x16, i32x16, u32x16, value
from spqt_ti.kernels.zigzag import minima_of, scales_of

BLOCK_COLUMNS = 64
GROUP_BANDS = 4
GROUP_VECTORS = GROUP_BANDS * 16 + 4  # of sums
RING_STRIDE = GROUP_BANDS * BLOCK_COLUMNS + 16  # integers: superblocks to fetch while a group is computed
_PAIRS = BLOCK_COLUMNS // 2
SPARE_VECTORS = 3 * _PAIRS + 1  # scratch: rounded x d scale, x d, steps


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


def make_add_block(fetch, exact: bool):
    """Build the ti.func that adds the active columns low..high-1 (at most BLOCK_COLUMNS) to the sums of a group.

    Arguments: quants and headers with the panel's first vector in each and the address of the array headers; the
    panel's height, the group's first band in it and its number of bands; x with its first vector; the active list; low,
    high; scratch with the first vector of the group's sums and of SPARE_VECTORS more; the state of `fetch`, which is
    called once per superblock with its number, to fetch one that is needed later.

    Returns it and the ti.func `write_rows(a, sums_at, band, out)` that turns a band's sums into the rows
    a[out..out+15].
    """
    make = _make_add_block_i16 if uses_integers(exact) else _make_add_block_f32
    add_block, minima_of_band, units = make(fetch)

    @ti.func
    def write_rows(a: ti.template(), sums_at, band, out):
        minima = minima_of_band(a, sums_at, band)
        for v in ti.static(range(2)):
            for high in ti.static(range(2)):
                offset = per_row(minima, v, high)
                sums = sums_at + 16 * band + 8 * v + high
                y = [a[sums + 2 * b] * units[8 * v + high + 2 * b] - offset for b in ti.static(range(4))]
                for m in ti.static(range(4)):  # 16 rows in order: lanes 4m..4m+3 of the four sums
                    place = out + 8 * v + 4 * (m // 2) + 2 * high + m % 2
                    a[place] = f32x16(*[y[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])

    return add_block, write_rows


def _make_add_block_f32(fetch):
    multiply_add, _ = make_multiply_add()
    scales_and_minima = make_scales_and_minima()

    @ti.func
    def add_band(
        quants: ti.template(), quants_from, headers: ti.template(), headers_from, height, band,
        x: ti.template(), x_base, active: ti.template(), low, high, a: ti.template(), sums_at, offsets_at, asked,
        ahead: ti.template(),
    ):  # fmt: skip
        sums = [a[sums_at + i] for i in ti.static(range(16))]
        offsets = a[offsets_at]
        for j in range(low, high):
            fetch(ahead, asked + j - low)
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
        a[offsets_at] = offsets

    @ti.func
    def add_block(
        quants: ti.template(), quants_from, headers: ti.template(), headers_from, headers_address, height, first, bands,
        x: ti.template(), x_base, active: ti.template(), low, high, a: ti.template(), sums_at, spare,
        ahead: ti.template(),
    ):  # fmt: skip
        for band in range(bands):
            add_band(
                quants, quants_from, headers, headers_from, height, first + band, x, x_base, active, low, high,
                a, sums_at + 16 * band, sums_at + 16 * GROUP_BANDS + band, band * (high - low), ahead,
            )  # fmt: skip

    @ti.func
    def minima_of_band(a: ti.template(), sums_at, band):
        offsets = a[sums_at + 16 * GROUP_BANDS + band]
        return f32x8(*[offsets[8 + i] for i in ti.static(range(8))])

    return add_block, minima_of_band, [2.0 ** (-8 * (i // 2 % 4)) for i in range(16)]


def _make_add_block_i16(fetch):
    multiply_add, _ = make_multiply_add()
    native16 = native.load_vnni()

    @ti.func
    def four_headers(address, place):
        """Headers of the superblocks place..place+3; there may be fewer in the panel: nobody looks at the others."""
        h = u32x16(0)
        at = address + (ti.cast(place, ti.i64) << 4)
        native16.load64(at, h)
        return h

    @ti.func
    def scale_inputs(
        headers_address, first, height, x: ti.template(), x_base, active: ti.template(), low, high,
        a: ti.template(), spare,
    ):  # fmt: skip
        """x d and x dmin of every pair of columns to a[spare + 2 * _PAIRS...]; their steps to the vector after them.

        Lane 8 c + 2 b + m: column c of the pair, band b of the group, d (m = 0) or dmin (1).
        """
        largest = f32x16(1e-30)
        for pair in range((high - low + 1) // 2):
            j = low + 2 * pair
            last = ti.min(j + 1, high - 1)  # where there is no second column, the first with x = 0
            one = four_headers(headers_address, active[j] * height + first)
            two = four_headers(headers_address, active[last] * height + first)
            x_one = value(x, x_base * 16 + active[j])
            x_two = ti.select(j + 1 < high, value(x, x_base * 16 + active[last]), 0.0)
            v = f32x16(0.0)
            native16.first_halves(one, two, v)
            v *= f32x16(*([x_one] * 8), *([x_two] * 8))
            native16.widen(largest, v)
            a[spare + 2 * _PAIRS + pair] = v
        steps = [ti.max(largest[i], largest[i + 8]) * (1.0 / 32767.0) for i in ti.static(range(8))]
        a[spare + 3 * _PAIRS] = f32x16(*steps, *steps)

    @ti.func
    def round_scales(
        headers_address, first, height, active: ti.template(), low, high, a: ti.template(), offsets_at, spare,
    ):  # fmt: skip
        """x d scale of every pair of columns, 16 bits each, to a[spare + 2 pair] (sub-blocks 0-3, lane 4 b + k) and
        a[spare + 2 pair + 1] (4-7); what the minima add up to is added at a[offsets_at], in the same order.
        """
        steps = a[spare + 3 * _PAIRS]
        inverse = 1.0 / steps
        minima, minima_rest, scales, scales_rest, products = [
            [i32x16(0) for _ in ti.static(range(2))] for _ in ti.static(range(5))
        ]
        ones = i32x16(0x00010001)
        for pair in range((high - low + 1) // 2):
            j = low + 2 * pair
            one = four_headers(headers_address, active[j] * height + first)
            two = four_headers(headers_address, active[ti.min(j + 1, high - 1)] * height + first)
            native16.fields(one, one)
            native16.fields(two, two)
            pairs = [i32x16(0) for _ in ti.static(range(4))]  # of scales 0-3, 4-7, minima 0-3, 4-7
            native16.interleave(one, two, pairs[0], pairs[1], pairs[2], pairs[3])
            v = a[spare + 2 * _PAIRS + pair]
            d = i32x16(0)
            dmin = i32x16(0)
            d_rest = i32x16(0)
            dmin_rest = i32x16(0)
            native16.round_inputs(v, inverse, d, dmin, d_rest, dmin_rest)
            for k in ti.static(range(2)):
                product = i32x16(0)
                native16.times(pairs[k], d, product)
                native16.dot2(products[k], product, ones)
                native16.dot2(scales[k], pairs[k], d)
                native16.dot2(scales_rest[k], pairs[k], d_rest)
                native16.dot2(minima[k], pairs[2 + k], dmin)
                native16.dot2(minima_rest[k], pairs[2 + k], dmin_rest)
                bits = f32x16(0.0)
                native16.float_of(product, bits)
                a[spare + 2 * pair + k] = bits
        # What rounding added to the scales counts 7.5 times, the mean of a nibble: taken off, it leaves half the error.
        rest = 1.0 / 32767.0
        step_d = f32x16(*[steps[2 * (i // 4)] for i in ti.static(range(16))])
        step_dmin = f32x16(*[steps[2 * (i // 4) + 1] for i in ti.static(range(16))])
        for k in ti.static(range(2)):
            added = ((products[k] * 64 - scales[k]) * 1.0 - scales_rest[k] * rest) * 7.5
            a[offsets_at + k] = a[offsets_at + k] + (added * step_d + (minima[k] + minima_rest[k] * rest) * step_dmin)

    @ti.func
    def add_band(
        quants: ti.template(), quants_from, height, band, active: ti.template(), low, high,
        a: ti.template(), sums_at, spare, in_group, asked, ahead: ti.template(),
    ):  # fmt: skip
        low_halves = u32x16(0xFFFF)
        nibbles = [u32x16(0x000F000F), u32x16(0x00F000F0)]
        native16.keep16(low_halves)
        for half in ti.static(range(2)):
            native16.keep16(nibbles[half])
        lanes = [i32x16(*[half + 2 * (i // 8) for i in range(16)]) + 4 * in_group for half in ti.static(range(2))]
        totals = [i32x16(0) for _ in ti.static(range(16))]
        for pair in range((high - low + 1) // 2):
            j = low + 2 * pair
            native16.not_unrolled()
            fetch(ahead, asked + 2 * pair)
            fetch(ahead, asked + 2 * pair + 1)
            first = active[j] * height + band
            second = active[ti.min(j + 1, high - 1)] * height + band
            for v in ti.static(range(2)):
                one = quants[quants_from + 2 * first + v]
                two = quants[quants_from + 2 * second + v]
                bytes01 = (one & low_halves) | (two << 16)  # of both columns, in the two halves of a lane
                bytes23 = (one >> 16) | (two & ~low_halves)
                parts = [bytes01, bytes01 >> 8, bytes23, bytes23 >> 8]
                bits = a[spare + 2 * pair + v]
                products = i32x16(0)
                native16.bits_of(bits, products)
                for half in ti.static(range(2)):
                    scale = i32x16(0)
                    native16.pick(products, lanes[half], scale)
                    for byte in ti.static(range(4)):
                        pair_nibbles = parts[byte] & nibbles[half]
                        native16.dot2(totals[8 * v + 2 * byte + half], pair_nibbles, scale)
        step = a[spare + 3 * _PAIRS][2 * in_group]
        for i in ti.static(range(16)):
            total = a[sums_at + i]
            multiply_add(total, totals[i] * 1.0, f32x16(step * (64.0 / 16.0 ** (i % 2))))
            a[sums_at + i] = total

    @ti.func
    def add_block(
        quants: ti.template(), quants_from, headers: ti.template(), headers_from, headers_address, height, first, bands,
        x: ti.template(), x_base, active: ti.template(), low, high, a: ti.template(), sums_at, spare,
        ahead: ti.template(),
    ):  # fmt: skip
        group = headers_from + first
        scale_inputs(headers_address, group, height, x, x_base, active, low, high, a, spare)
        round_scales(headers_address, group, height, active, low, high, a, sums_at + 16 * GROUP_BANDS, spare)
        for band in range(bands):
            add_band(
                quants, quants_from, height, first + band, active, low, high,
                a, sums_at + 16 * band, spare, band, band * (high - low), ahead,
            )  # fmt: skip

    @ti.func
    def minima_of_band(a: ti.template(), sums_at, band):
        return f32x8(*[a[sums_at + 16 * GROUP_BANDS + i // 4][4 * band + i % 4] for i in ti.static(range(8))])

    return add_block, minima_of_band, [1.0] * 16
