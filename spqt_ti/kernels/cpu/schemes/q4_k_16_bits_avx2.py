"""The nibbles of Q4_K times rounded inputs (q4_k_16_bits.py) with AVX2.

One instruction multiplies a nibble of two columns in eight rows by both columns' 16-bit products and adds the two;
another adds to the sums. 64 rows of a band go together: their sums are half of the 16 registers.

Bytes were no better: `vpmaddubsw` adds in 16 bits, which have to be widened every 16 columns, and needs two products
per nibble. Both take 14 instructions for 64 products; 16-bit words need no splitting of the inputs.

sums[4 h + 2 parity + high], lane i, has row 64 h + 32 high + 2 w + parity; w is 4 (i / 8 + 2 (i / 4 % 2)) + i % 4.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.tile_sums import COLUMNS_AT, QUAD_BANDS, SCALES_AT
from spqt_ti.kernels.cpu.vectors import f32x16, i32x8, i32x16

_LANE = [w % 4 + 8 * (w // 4 % 2) + 4 * (w // 8) for w in range(16)]  # of word w of 16


def make_add_band(native16, fetch_next):
    """Build the ti.funcs that add a band's products of a tile to its 16 sums, and that write the rows of these."""
    multiply_add, _ = make_multiply_add()

    @ti.func
    def add_quarter(
        fetches: ti.template(), quants_at, count, a: ti.template(), sums_at, step, scales_from, workspace,
        fetch_at: ti.template(), fetch_last,
    ):  # fmt: skip
        """64 rows; sum 2 k + high of `lows` and `highs`: words 0-3 and 8-11, 4-7 and 12-15, byte k of each."""
        lows, highs = [[i32x8(0) for _ in ti.static(range(4))] for _ in ti.static(range(2))]
        columns_at = quants_at
        at = workspace + COLUMNS_AT
        scales_at = scales_from
        for _ in range((count + 1) // 2):
            native16.not_unrolled()
            if ti.static(fetches):
                fetch_next(fetch_at, fetch_last)
            words = [i32x8(0) for _ in ti.static(range(2))]
            native16.two_columns(columns_at, at, words[0], words[1])
            at += 16
            scales = [i32x8(0) for _ in ti.static(range(2))]
            for high in ti.static(range(2)):
                scale_at = scales_at + 4 * high
                native16.broadcast32_to_8(scale_at, scales[high])
            scales_at += 128
            for k in ti.static(range(2)):
                for high in ti.static(range(2)):
                    low_nibbles = (words[0] >> (8 * k)) & (0x000F000F << (4 * high))
                    high_nibbles = (words[1] >> (8 * k)) & (0x000F000F << (4 * high))
                    native16.dot2_of_8(lows[2 * k + high], low_nibbles, scales[high])
                    native16.dot2_of_8(highs[2 * k + high], high_nibbles, scales[high])
        for i in ti.static(range(4)):
            both = i32x16(0)
            native16.join(lows[i], highs[i], both)
            total = a[sums_at + i]
            multiply_add(total, both * 1.0, f32x16(step * (64.0 / 16.0 ** (i % 2))))
            a[sums_at + i] = total

    @ti.func
    def add_band(
        quants_at, count, a: ti.template(), sums_at, step, in_quad, workspace, fetch_at: ti.template(), fetch_last,
    ):  # fmt: skip
        for quarter in range(2):
            for half in ti.static(range(2)):  # one fetches: as many as rounding leaves of a superblock each
                h = 2 * quarter + half
                scales_from = workspace + (SCALES_AT + 64 * quarter + 8 * half + 16 * in_quad)
                add_quarter(
                    half == 0, quants_at + 32 * h, count, a, sums_at + 4 * h, step, scales_from, workspace, fetch_at,
                    fetch_last,
                )  # fmt: skip

    @ti.func
    def write_rows(a: ti.template(), sums_at, band, out):
        for h in ti.static(range(4)):
            for high in ti.static(range(2)):
                sub_block = 2 * h + high
                minimum = a[sums_at + 16 * QUAD_BANDS + sub_block // 4][4 * band + sub_block % 4]
                sums = sums_at + 16 * band + 4 * h + high
                y = [a[sums + 2 * parity] - f32x16(minimum) for parity in ti.static(range(2))]
                for m in ti.static(range(2)):
                    lanes = [y[i % 2][_LANE[8 * m + i // 2]] for i in ti.static(range(16))]
                    a[out + 4 * h + 2 * high + m] = f32x16(*lanes)

    return add_band, write_rows
