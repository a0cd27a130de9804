"""Q5_K on the CPU: two vectors of nibbles, as Q6_K has them, and a header of 48 bytes: Q4_K's, and the plane of the
fifth bits (byte_vectors.py has its order).
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q5_k
from spqt_ti.formats.affine import HEADER_BYTES
from spqt_ti.kernels.cpu.schemes.byte_vectors import (
    bit_plane,
    bits_of,
    make_byte_decoder,
    nibble_planes,
    words_of_bytes,
)
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.cpu.schemes.q4_k_fields import make_scales_and_minima
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.kernels.shared.geometry import Planes

PLANES = Planes(quant_vectors=2, header_vectors=3)


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 176] -> quants u32 [n, 32], headers u32 [n, 12]."""
    words = words_of_bytes(q5_k.unpack(superblocks).quants)
    header = np.ascontiguousarray(superblocks[:, :HEADER_BYTES]).view("<u4")
    return nibble_planes(words).reshape(-1, 32), np.concatenate([header, bit_plane(words >> 4 & 0x01010101)], axis=1)


@ti.func
def byte_vector(quants: ti.template(), at, headers: ti.template(), headers_at, t):
    low = (quants[at + (t >> 1)] >> (4 * (t & 1))) & 0x0F0F0F0F
    return low | (bits_of(headers, headers_at + 1, t) << 4)


def _make_field(first: int):
    """Build the ti.func (headers, at, x) of x times a field of each 16 rows: scales from lane 0, minima from 8."""

    def make():
        scales_and_minima = make_scales_and_minima()

        @ti.func
        def field(headers: ti.template(), at, x):
            both = scales_and_minima(headers[at], x)
            return f32x16(*[both[first + k // 2] for k in ti.static(range(16))])

        return field

    return make


DECODER = make_byte_decoder(
    q5_k.SCHEME, PLANES, unpack, ByteVectors(0, byte_vector, _make_field(0), make_minima=_make_field(8), mean=15.5)
)
