"""Q4_K in 16 bits: what a tile of active columns adds to the sums of up to four bands, with AVX-512 VNNI.

x d is rounded to 16 bits, and so is its product with a scale. One instruction multiplies the nibbles of four columns
and 16 rows by the high bytes of these products, another by the low ones: less than half the time per superblock. A step
is 1/32767 of the largest x d of a band in a tile of columns, times 63, the largest scale. A weight is off by at most
one step x |nibble - 7.5|: what both roundings add for an average nibble is taken off again.

sums[8 v + 2 k + high], lane 4 m + i, has row 128 v + 64 (m / 2) + 32 high + 16 (m % 2) + 4 k + i. Behind the sums of a
quad lies what the minima add up to, four vectors.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes.q4_k_fields import per_row
from spqt_ti.kernels.cpu.tile_sums import COLUMNS_AT, PAIRS, QUAD_BANDS, SCALES_AT, input_of
from spqt_ti.kernels.cpu.vectors import f32x8, f32x16, i32x16, u32x16


def make_add_tile(fetch):
    """Build the ti.funcs `add_tile` and `write_rows` (see tile_sums.make_add_tile)."""
    multiply_add, _ = make_multiply_add()
    native16 = native.load_vnni()

    @ti.func
    def fetch_next(fetch_at: ti.template(), fetch_last):
        """Fetch what is listed at fetch_at. Calls are spread evenly over what a quad takes, one per
        superblock: a burst would fill the core's miss buffers and hold up everybody's loads.
        """
        fetch(ti.min(fetch_at, fetch_last))
        fetch_at += 8

    @ti.func
    def list_columns(active: ti.template(), low, high, height, workspace):
        """Offsets of the columns' headers, in bytes, to the workspace. The last fours are completed with the last."""
        at = workspace + COLUMNS_AT
        for j in range((high - low + 3) // 4 * 4):
            offset = ti.cast(active[ti.min(low + j, high - 1)] * height, ti.i64) << 4
            native16.store_offset(at, offset)
            at += 8

    @ti.func
    def next_headers(headers_at, at: ti.template(), one: ti.template(), two: ti.template()):
        """Headers of the two columns that are listed at `at`, which moves on behind them."""
        native16.load_headers(headers_at, at, one)
        at += 8
        native16.load_headers(headers_at, at, two)
        at += 8

    @ti.func
    def scale_inputs(headers_at, inputs: ti.template(), low, high, a: ti.template(), spare, workspace):
        """x d and x dmin of every pair of columns to a[spare...]; their steps to the vector after them.

        Lane 8 c + 2 b + m: column c of the pair, band b of the quad, d (m = 0) or dmin (1).
        """
        largest = f32x16(1e-30)
        at = workspace + COLUMNS_AT
        for pair in range((high - low + 3) // 4 * 2):
            one, two = [u32x16(0) for _ in ti.static(range(2))]
            next_headers(headers_at, at, one, two)
            x_one = input_of(inputs, low + 2 * pair, high)
            x_two = input_of(inputs, low + 2 * pair + 1, high)
            v = f32x16(0.0)
            native16.first_halves(one, two, v)
            v *= f32x16(*([x_one] * 8), *([x_two] * 8))
            native16.widen(largest, v)
            a[spare + pair] = v
        # Not `ti.max`, which drops NaN: one in an input has to reach the products.
        other_half = f32x16(*[largest[(i + 8) % 16] for i in ti.static(range(16))])
        native16.widen(largest, other_half)
        a[spare + PAIRS] = largest * (1.0 / 32767.0)

    @ti.func
    def round_scales(
        headers_at, count, a: ti.template(), offsets_at, spare, workspace, fetch_at: ti.template(), fetch_last,
    ):  # fmt: skip
        """x d scale of the `count` columns as 16 bits, 256 times a high byte plus a low one: the bytes of four columns
        in a lane, first high, then low for sub-blocks 0-3 (lane 4 b + k), then both for 4-7. What the minima add
        up to is added at a[offsets_at], in the same order.
        """
        steps = a[spare + PAIRS]
        inverse = 1.0 / steps
        minima, minima_rest, scales, scales_rest, products = [
            [i32x16(0) for _ in ti.static(range(2))] for _ in ti.static(range(5))
        ]
        ones = i32x16(0x00010001)
        at = workspace + COLUMNS_AT
        scales_at = workspace + SCALES_AT
        for four in range((count + 3) // 4):
            rounded = [i32x16(0) for _ in ti.static(range(4))]  # of a pair of columns: sub-blocks 0-3, 4-7
            for half in ti.static(range(2)):
                fetch_next(fetch_at, fetch_last)
                fetch_next(fetch_at, fetch_last)
                one, two = [u32x16(0) for _ in ti.static(range(2))]
                next_headers(headers_at, at, one, two)
                native16.fields(one, one)
                native16.fields(two, two)
                pairs = [i32x16(0) for _ in ti.static(range(4))]  # of scales 0-3, 4-7, minima 0-3, 4-7
                native16.interleave(one, two, pairs[0], pairs[1], pairs[2], pairs[3])
                v = a[spare + 2 * four + half]
                d, dmin, d_rest, dmin_rest = [i32x16(0) for _ in ti.static(range(4))]
                native16.round_inputs(v, inverse, d, dmin, d_rest, dmin_rest)
                for k in ti.static(range(2)):
                    native16.times(pairs[k], d, rounded[2 * half + k])
                    native16.dot2(products[k], rounded[2 * half + k], ones)
                    native16.dot2(scales[k], pairs[k], d)
                    native16.dot2(scales_rest[k], pairs[k], d_rest)
                    native16.dot2(minima[k], pairs[2 + k], dmin)
                    native16.dot2(minima_rest[k], pairs[2 + k], dmin_rest)
            for k in ti.static(range(2)):
                high_bytes, low_bytes = [i32x16(0) for _ in ti.static(range(2))]
                native16.split_bytes(rounded[k], rounded[2 + k], high_bytes, low_bytes)
                native16.store64(scales_at, high_bytes)
                scales_at += 64
                native16.store64(scales_at, low_bytes)
                scales_at += 64
        # What rounding added to the scales counts 7.5 times, the mean of a nibble: taken off, it leaves half the error.
        rest = 1.0 / 32767.0
        step_d = f32x16(*[steps[2 * (i // 4)] for i in ti.static(range(16))])
        step_dmin = f32x16(*[steps[2 * (i // 4) + 1] for i in ti.static(range(16))])
        for k in ti.static(range(2)):
            added = ((products[k] * 64 - scales[k]) * 1.0 - scales_rest[k] * rest) * 7.5
            a[offsets_at + k] = a[offsets_at + k] + (added * step_d + (minima[k] + minima_rest[k] * rest) * step_dmin)

    @ti.func
    def add_band(
        quants_at, count, a: ti.template(), sums_at, step, in_quad, workspace, fetch_at: ti.template(), fetch_last,
    ):  # fmt: skip
        nibbles = [u32x16(0x0F0F0F0F), u32x16(0x0F0F0F0F) << 4]
        for half in ti.static(range(2)):
            native16.keep16(nibbles[half])
        lanes = [i32x16(*[half + 2 * (i // 8) for i in range(16)]) + 4 * in_quad for half in ti.static(range(2))]
        for v in ti.static(range(2)):
            highs, lows = [[i32x16(0) for _ in ti.static(range(8))] for _ in ti.static(range(2))]
            words_at = quants_at + 64 * v
            at = workspace + COLUMNS_AT
            scales_at = workspace + (SCALES_AT + 128 * v)
            for _ in range((count + 3) // 4):
                native16.not_unrolled()
                for _i in ti.static(range(2 - v)):
                    fetch_next(fetch_at, fetch_last)
                words = [u32x16(0) for _ in ti.static(range(4))]
                for c in ti.static(range(4)):
                    native16.load_quants(words_at, at, words[c])
                    at += 8
                parts = [u32x16(0) for _ in ti.static(range(4))]
                native16.four_columns(words[0], words[1], words[2], words[3], parts[0], parts[1], parts[2], parts[3])
                high_bytes, low_bytes = [i32x16(0) for _ in ti.static(range(2))]
                native16.load64(scales_at, high_bytes)
                scales_at += 64
                native16.load64(scales_at, low_bytes)
                scales_at += 192
                for half in ti.static(range(2)):
                    high_scale, low_scale = [i32x16(0) for _ in ti.static(range(2))]
                    native16.pick(high_bytes, lanes[half], high_scale)
                    native16.pick(low_bytes, lanes[half], low_scale)
                    for k in ti.static(range(4)):
                        four_nibbles = parts[k] & nibbles[half]
                        native16.dot4(highs[2 * k + half], four_nibbles, high_scale)
                        native16.dot4(lows[2 * k + half], four_nibbles, low_scale)
            for i in ti.static(range(8)):
                total = a[sums_at + 8 * v + i]
                multiply_add(total, (highs[i] * 256 + lows[i]) * 1.0, f32x16(step * (64.0 / 16.0 ** (i % 2))))
                a[sums_at + 8 * v + i] = total

    @ti.func
    def add_tile(
        panel: ti.template(), first, bands, inputs: ti.template(), low, high, quad: ti.template(), workspace
    ):  # fmt: skip
        count = high - low
        headers_at = panel.headers_address + (ti.cast(panel.headers_from + first, ti.i64) << 4)
        quants_at = panel.quants_address + (ti.cast(panel.quants_from + 2 * first, ti.i64) << 6)
        fetch_at = workspace
        fetch_last = workspace + (ti.cast(count * bands - 1, ti.i64) << 3)
        list_columns(inputs.active, low, high, panel.height, workspace)
        scale_inputs(headers_at, inputs, low, high, quad.a, quad.scratch, workspace)
        offsets_at = quad.sums + 16 * QUAD_BANDS
        round_scales(headers_at, count, quad.a, offsets_at, quad.scratch, workspace, fetch_at, fetch_last)
        for band in range(bands):
            add_band(
                quants_at + (ti.cast(band, ti.i64) << 7), count, quad.a, quad.sums + 16 * band,
                quad.a[quad.scratch + PAIRS][2 * band], band, workspace, fetch_at, fetch_last,
            )  # fmt: skip

    @ti.func
    def write_rows(a: ti.template(), sums_at, band, out):
        minima = f32x8(*[a[sums_at + 16 * QUAD_BANDS + i // 4][4 * band + i % 4] for i in ti.static(range(8))])
        for v in ti.static(range(2)):
            for high in ti.static(range(2)):
                offset = per_row(minima, v, high)
                sums = sums_at + 16 * band + 8 * v + high
                y = [a[sums + 2 * b] - offset for b in ti.static(range(4))]
                for m in ti.static(range(4)):  # 16 rows in order: lanes 4m..4m+3 of the four sums
                    at = out + 8 * v + 4 * (m // 2) + 2 * high + m % 2
                    a[at] = f32x16(*[y[k >> 2][4 * m + (k & 3)] for k in ti.static(range(16))])

    return add_tile, write_rows
