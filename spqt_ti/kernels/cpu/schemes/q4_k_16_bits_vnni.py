"""The nibbles of Q4_K times rounded inputs (q4_k_16_bits.py) with AVX-512 VNNI.

One instruction multiplies the nibbles of four columns and 16 rows by the high bytes of these products, another by the
low ones: less than half the time per superblock that f32 takes.

sums[8 v + 2 k + high], lane 4 m + i, has row 128 v + 64 (m / 2) + 32 high + 16 (m % 2) + 4 k + i.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes.q4_k_fields import per_row
from spqt_ti.kernels.cpu.tile_sums import COLUMNS_AT, QUAD_BANDS, SCALES_AT
from spqt_ti.kernels.cpu.vectors import f32x8, f32x16, i32x16, u32x16


def make_add_band(native16, fetch_next):
    """Build the ti.funcs that add a band's products of a tile to its 16 sums, and that write the rows of these."""
    multiply_add, _ = make_multiply_add()

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

    return add_band, write_rows
