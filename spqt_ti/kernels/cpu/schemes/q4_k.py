"""Q4_K on the CPU: 128 bytes of quants and a header of 16 bytes, both as stored.

Word i of the quants holds rows 4i..4i+3 of a pair of sub-blocks (low nibbles, high nibbles).
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q4_k
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes import q4_k_16_bits, q4_k_chunk_16_bits
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.schemes.q4_k_fields import make_scales_and_minima, minima_of, per_row, scales_of
from spqt_ti.kernels.cpu.schemes.q4_k_tail import make_tail_band
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS
from spqt_ti.kernels.cpu.vectors import f32x8, f32x16
from spqt_ti.kernels.shared.geometry import Q4_K_PLANES
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, nibbles_in_place


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 144] -> quants u32 [n, 32], headers u32 [n, 4]."""
    headers, quants = superblocks[:, :16], superblocks[:, 16:]
    return np.ascontiguousarray(quants).view("<u4"), np.ascontiguousarray(headers).view("<u4")


def make_add_superblock():
    """sums[8 v + 2 k + high], lane i, has row 128 v + 64 (i / 8) + 32 high + 4 (i % 8) + k, times 256^k."""
    multiply_add, _ = make_multiply_add()
    scales_and_minima = make_scales_and_minima()

    @ti.func
    def add_superblock(panel: ti.template(), index, x, sums: ti.template(), offsets: ti.template()):
        both = scales_and_minima(panel.headers[panel.headers_from + index], x)
        offsets += both
        for v in ti.static(range(2)):
            words = panel.quants[panel.quants_from + 2 * index + v]
            for half in ti.static(range(2)):
                scale = per_row(both, v, half)
                for byte in ti.static(range(4)):
                    nibbles = (words & (15 << (8 * byte))) * 1.0
                    multiply_add(sums[8 * v + 2 * byte + half], nibbles, scale)
                words = words >> 4

    return add_superblock


def make_write_rows():
    """For the sums of `make_add_superblock`."""

    @ti.func
    def write_rows(a: ti.template(), sums_at, band, out):
        offsets = a[sums_at + 16 * QUAD_BANDS + band]
        minima = f32x8(*[offsets[8 + i] for i in ti.static(range(8))])
        for v in ti.static(range(2)):
            for high in ti.static(range(2)):
                offset = per_row(minima, v, high)
                sums = sums_at + 16 * band + 8 * v + high
                y = [a[sums + 2 * b] * ti.static(2.0 ** (-8 * b)) - offset for b in ti.static(range(4))]
                for m in ti.static(range(4)):  # 16 rows in order: lanes 4m..4m+3 of the four sums
                    index = out + 8 * v + 4 * (m // 2) + 2 * high + m % 2
                    a[index] = f32x16(*[y[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])

    return write_rows


def make_decode_strip():
    """Nibbles `strip % 2` of quants vector `strip / 2`; lane i of vector b: row 64 (i / 8) + 4 (i % 8) + b of it."""

    @ti.func
    def decode_strip(m: ti.template(), index, height, a: ti.template(), tile, start, columns, strip):
        half = strip >> 1
        high = strip & 1
        low = 4 * half + high
        for j in range(columns):
            at = index + (start + j) * height
            header = m.headers[m.headers_base + at]
            scales = scales_of(header)
            minima = minima_of(header)
            s0, s1, m0, m1 = scales[low], scales[low + 2], minima[low], minima[low + 2]
            scale = f32x16(*[(s0, s1)[i // 8] for i in ti.static(range(16))])
            minimum = f32x16(*[(m0, m1)[i // 8] for i in ti.static(range(16))])
            words = m.quants[m.quants_base + 2 * at + half] >> (4 * high)
            for b in ti.static(range(4)):
                a[tile + 4 * j + b] = (scale * NIBBLE_UNIT[2 * b]) * nibbles_in_place(words, b, 0) - minimum

    return decode_strip


DECODER = Decoder(
    q4_k.SCHEME, Q4_K_PLANES, unpack, make_add_superblock, make_write_rows, make_decode_strip, lanes_of_four=True,
    make_fast_tile=q4_k_16_bits.make_add_tile, make_fast_matmul=q4_k_chunk_16_bits.make_matmul,
    make_tail_band=make_tail_band,
)  # fmt: skip
