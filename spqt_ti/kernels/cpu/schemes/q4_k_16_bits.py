"""Q4_K in 16 bits: what a tile of active columns adds to the sums of up to four bands.

x d is rounded to 16 bits, and so is its product with a scale. A step is 1/32767 of the largest x d of a band in a tile
of columns, times 63, the largest scale. A weight is off by at most one step x |nibble - 7.5|: what both roundings add
for an average nibble is taken off again.

These products are multiplied by the nibbles with AVX-512 VNNI (q4_k_16_bits_vnni.py) or AVX2 (q4_k_16_bits_avx2.py), in
whole numbers: both give the same bits. Behind the sums of a quad lies what the minima add up to, four vectors.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.schemes import q4_k_16_bits_avx2, q4_k_16_bits_vnni
from spqt_ti.kernels.cpu.tile_sums import COLUMNS_AT, PAIRS, QUAD_BANDS, SCALES_AT, input_of
from spqt_ti.kernels.cpu.vectors import f32x16, i32x16, u32x16


def make_add_tile(fetch):
    """Build the ti.funcs `add_tile` and `write_rows` (see tile_sums.make_add_tile)."""
    native16 = native.load_16_bits()
    in_bytes = native.products_by() == "x86_64_vnni"

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
        """x d scale of the `count` columns as 16 bits to the workspace, lane 4 b + k: band b, sub-block k.

        For AVX2 those of two columns in the halves of a lane, a vector for sub-blocks 0-3, then one for 4-7. For VNNI
        as 256 times a high byte plus a low one, the bytes of four columns in a lane: high ones, then low ones for
        sub-blocks 0-3, then both for 4-7. What the minima add up to is added at a[offsets_at], in the same order.
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
            if ti.static(in_bytes):
                for k in ti.static(range(2)):
                    high_bytes, low_bytes = [i32x16(0) for _ in ti.static(range(2))]
                    native16.split_bytes(rounded[k], rounded[2 + k], high_bytes, low_bytes)
                    native16.store64(scales_at, high_bytes)
                    scales_at += 64
                    native16.store64(scales_at, low_bytes)
                    scales_at += 64
            else:
                for k in ti.static(range(4)):
                    native16.store64(scales_at, rounded[k])
                    scales_at += 64
        # What rounding added to the scales counts 7.5 times, the mean of a nibble: taken off, it leaves half the error.
        rest = 1.0 / 32767.0
        step_d = f32x16(*[steps[2 * (i // 4)] for i in ti.static(range(16))])
        step_dmin = f32x16(*[steps[2 * (i // 4) + 1] for i in ti.static(range(16))])
        for k in ti.static(range(2)):
            added = ((products[k] * 64 - scales[k]) * 1.0 - scales_rest[k] * rest) * 7.5
            a[offsets_at + k] = a[offsets_at + k] + (added * step_d + (minima[k] + minima_rest[k] * rest) * step_dmin)

    make = q4_k_16_bits_vnni.make_add_band if in_bytes else q4_k_16_bits_avx2.make_add_band
    add_band, write_rows = make(native16, fetch_next)

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

    return add_tile, write_rows
