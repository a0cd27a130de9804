"""The tail band of a Q4_K matrix: at most 64 rows, two sub-blocks, of which a column has one vector of 8 words.

Exact or in 16 bits, as the full bands are (see q4_k_16_bits.py). In 16 bits eight columns go together: a vector of
headers holds those of four columns instead of those of four bands, and a vector of words two columns instead of one.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes.q4_k_fields import make_scales_and_minima, minima_of, scales_of
from spqt_ti.kernels.cpu.tile_sums import TILE_COLUMNS, input_of, uses_integers
from spqt_ti.kernels.cpu.vectors import f32x8, f32x16, i32x16, u32x16, value
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place

_EIGHTS = TILE_COLUMNS // 8


def make_tail_band(exact: bool):
    """Build the ti.func (Matrix, Inputs, first, last, a, out, scratch) that computes the tail band for the active
    columns first..last-1 and writes its four vectors of rows at a[out]; it uses some vectors of the worker's from
    a[scratch].
    """
    return _make_tail_band_i16() if uses_integers(exact) else _make_tail_band_f32()


@ti.func
def write_tail(sums: ti.template(), minima: ti.template(), a: ti.template(), out):
    """sums[2 byte + high], lane i: row 32 high + 4 i + byte."""
    for high in ti.static(range(2)):
        y = [sums[2 * b + high] - minima[high] for b in ti.static(range(4))]
        for m in ti.static(range(2)):
            a[out + 2 * high + m] = f32x16(*[y[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])


def _make_tail_band_f32():
    _, multiply_add8 = make_multiply_add()
    scales_and_minima = make_scales_and_minima()

    @ti.func
    def tail_band(m: ti.template(), inputs: ti.template(), first, last, a: ti.template(), out, scratch):
        headers_base = m.headers_base + m.full_bands * m.cols
        sums = [f32x8(0.0) for _ in ti.static(range(8))]
        offsets = f32x16(0.0)
        for j in range(first, last):
            column = inputs.active[j]
            xj = value(inputs.x, inputs.x_base * 16 + column)
            both = scales_and_minima(m.headers[headers_base + column], xj)
            offsets += both
            words = m.tail[m.tail_base + column]
            for high in ti.static(range(2)):
                scale = f32x8(both[high])
                for byte in ti.static(range(4)):
                    multiply_add8(sums[2 * byte + high], nibbles_in_place(words, byte, high), scale)
        for k in ti.static(range(8)):
            sums[k] *= NIBBLE_UNIT[k]
        minima = [offsets[8 + high] for high in ti.static(range(2))]
        write_tail(sums, minima, a, out)

    return tail_band


def _make_tail_band_i16():
    native16 = native.load_16_bits()

    @ti.func
    def four_headers(headers: ti.template(), headers_base, active: ti.template(), j, last):
        """Headers of every second column from entry j of the active list; past its end that of the last."""
        four = [headers[headers_base + active[ti.min(j + 2 * c, last - 1)]] for c in ti.static(range(4))]
        return u32x16(*[four[i // 4][i % 4] for i in ti.static(range(16))])

    @ti.func
    def scale_inputs(
        headers: ti.template(), headers_base, inputs: ti.template(), low, high, a: ti.template(), spare
    ):  # fmt: skip
        """x d and x dmin of every eight columns to a[spare...], lane 8 c + 2 b + m: column 2 b + c, d (m = 0) or dmin.

        Returns the steps of both.
        """
        largest = f32x16(1e-30)
        for eight in range((high - low + 7) // 8):
            j = low + 8 * eight
            one = four_headers(headers, headers_base, inputs.active, j, high)
            two = four_headers(headers, headers_base, inputs.active, j + 1, high)
            xs = [input_of(inputs, j + c, high) for c in ti.static(range(8))]
            v = f32x16(0.0)
            native16.first_halves(one, two, v)
            v *= f32x16(*[xs[i % 8 // 2 * 2 + i // 8] for i in ti.static(range(16))])
            native16.widen(largest, v)
            a[spare + eight] = v
        for k in ti.static((2, 4, 8)):  # not `ti.max`, which drops NaN: one in an input has to reach the products
            others = f32x16(*[largest[(i + k) % 16] for i in ti.static(range(16))])
            native16.widen(largest, others)
        return largest[0] / 32767.0, largest[1] / 32767.0

    @ti.func
    def round_scales(
        headers: ti.template(), headers_base, active: ti.template(), low, high, step, step_dmin, minima: ti.template(),
        a: ti.template(), spare,
    ):  # fmt: skip
        """x d scale of every eight columns to a[spare + _EIGHTS...], 16 bits each: lane 4 b + k has columns 2 b and
        2 b + 1, sub-block k. `minima` gets what they add up to, with what rounding added (see q4_k_16_bits.py).
        """
        inverse = f32x16(*([1.0 / step, 1.0 / step_dmin] * 8))
        of_minima, minima_rest, scales, scales_rest, products = [i32x16(0) for _ in ti.static(range(5))]
        ones = i32x16(0x00010001)
        for eight in range((high - low + 7) // 8):
            j = low + 8 * eight
            one = four_headers(headers, headers_base, active, j, high)
            two = four_headers(headers, headers_base, active, j + 1, high)
            native16.fields(one, one)
            native16.fields(two, two)
            pairs = [i32x16(0) for _ in ti.static(range(4))]
            native16.interleave(one, two, pairs[0], pairs[1], pairs[2], pairs[3])
            v = a[spare + eight]
            d, dmin, d_rest, dmin_rest, product = [i32x16(0) for _ in ti.static(range(5))]
            native16.round_inputs(v, inverse, d, dmin, d_rest, dmin_rest)
            native16.times(pairs[0], d, product)
            native16.dot2(products, product, ones)
            native16.dot2(scales, pairs[0], d)
            native16.dot2(scales_rest, pairs[0], d_rest)
            native16.dot2(of_minima, pairs[2], dmin)
            native16.dot2(minima_rest, pairs[2], dmin_rest)
            bits = f32x16(0.0)
            native16.float_of(product, bits)
            a[spare + _EIGHTS + eight] = bits
        rest = 1.0 / 32767.0
        added = ((products * 64 - scales) * 1.0 - scales_rest * rest) * (7.5 * step)
        total = added + (of_minima + minima_rest * rest) * step_dmin
        for k in ti.static(range(2)):
            minima[k] += (total[k] + total[4 + k]) + (total[8 + k] + total[12 + k])

    @ti.func
    def two_columns(tail: ti.template(), tail_base, active: ti.template(), j, last):
        """Words of entries j and j + 2 of the active list."""
        words = [tail[tail_base + active[ti.min(j + 2 * c, last - 1)]] for c in ti.static(range(2))]
        return u32x16(*[words[i // 8][i % 8] for i in ti.static(range(16))])

    @ti.func
    def add_tile(
        tail: ti.template(), tail_base, active: ti.template(), low, high, step, sums: ti.template(),
        a: ti.template(), spare,
    ):  # fmt: skip
        low_halves = u32x16(0xFFFF)
        nibbles = [u32x16(0x000F000F), u32x16(0x00F000F0)]
        totals = [i32x16(0) for _ in ti.static(range(8))]
        for four in range((high - low + 3) // 4):
            j = low + 4 * four
            one = two_columns(tail, tail_base, active, j, high)
            two = two_columns(tail, tail_base, active, j + 1, high)
            bytes01 = (one & low_halves) | (two << 16)
            bytes23 = (one >> 16) | (two & ~low_halves)
            parts = [bytes01, bytes01 >> 8, bytes23, bytes23 >> 8]
            bits = a[spare + _EIGHTS + four // 2]
            products = i32x16(0)
            native16.bits_of(bits, products)
            for half in ti.static(range(2)):
                lanes = i32x16(*[half + 4 * (i // 8) for i in range(16)]) + 8 * (four % 2)
                scale = i32x16(0)
                native16.pick(products, lanes, scale)
                for byte in ti.static(range(4)):
                    pair_nibbles = parts[byte] & nibbles[half]
                    native16.dot2(totals[2 * byte + half], pair_nibbles, scale)
        for k in ti.static(range(8)):
            both = totals[k] * (step * 64.0 / 16.0 ** (k % 2))
            sums[k] += f32x8(*[both[i] + both[i + 8] for i in ti.static(range(8))])

    @ti.func
    def tail_band(m: ti.template(), inputs: ti.template(), first, last, a: ti.template(), out, scratch):
        headers_base = m.headers_base + m.full_bands * m.cols
        sums = [f32x8(0.0) for _ in ti.static(range(8))]
        minima = [0.0, 0.0]
        for tile in range((last - first + TILE_COLUMNS - 1) // TILE_COLUMNS):
            low = first + tile * TILE_COLUMNS
            high = ti.min(low + TILE_COLUMNS, last)
            step, step_dmin = scale_inputs(m.headers, headers_base, inputs, low, high, a, scratch)
            round_scales(m.headers, headers_base, inputs.active, low, high, step, step_dmin, minima, a, scratch)
            add_tile(m.tail, m.tail_base, inputs.active, low, high, step, sums, a, scratch)
        write_tail(sums, minima, a, out)

    return tail_band


def make_decode_tail():
    """Build the ti.func (Matrix, a, tile, start, columns) that decodes the tail band's 64 rows: a strip of prefill."""

    @ti.func
    def decode_tail(m: ti.template(), a: ti.template(), tile, start, columns):
        """The 64 rows of the tail band; lane i of vector b: row 32 (i / 8) + 4 (i % 8) + b."""
        headers_base = m.headers_base + m.full_bands * m.cols
        for j in range(columns):
            header = m.headers[headers_base + start + j]
            scales = scales_of(header)
            minima = minima_of(header)
            scale = f32x16(*[scales[i // 8] for i in ti.static(range(16))])
            minimum = f32x16(*[minima[i // 8] for i in ti.static(range(16))])
            words = m.tail[m.tail_base + start + j]
            for b in ti.static(range(4)):
                low = nibbles_in_place(words, b, 0) * NIBBLE_UNIT[2 * b]
                high = nibbles_in_place(words, b, 1) * NIBBLE_UNIT[2 * b + 1]
                nibbles = f32x16(*[low[i] for i in ti.static(range(8))] + [high[i] for i in ti.static(range(8))])
                a[tile + 4 * j + b] = scale * nibbles - minimum

    return decode_tail
