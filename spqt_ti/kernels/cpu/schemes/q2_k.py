"""Q2_K on the CPU: a vector of pairs (byte_vectors.py has their order) and a header of 32 bytes: scales and minima as
stored, d, dmin, and 12 bytes of nothing.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q2_k
from spqt_ti.kernels.cpu.schemes.byte_vectors import (
    make_byte_decoder,
    make_scaled_bytes,
    pair_plane,
    pairs_of,
    words_of_bytes,
)
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.shared.geometry import Planes
from spqt_ti.kernels.shared.words import half

PLANES = Planes(quant_vectors=1, header_vectors=2)


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 84] -> quants u32 [n, 16], headers u32 [n, 8]."""
    headers = np.zeros((len(superblocks), 32), np.uint8)
    headers[:, :16] = superblocks[:, :16]
    headers[:, 16:20] = superblocks[:, 80:]
    return pair_plane(words_of_bytes(q2_k.unpack(superblocks).quants)), headers.view("<u4")


@ti.func
def byte_vector(quants: ti.template(), at, headers: ti.template(), headers_at, t):
    return pairs_of(quants[at], t)


def _make_field(number: int):
    """Build the ti.func (headers, at, x) of x times one of the fields of each 16 rows: scales are 0, minima 1."""

    def make():
        scaled_bytes = make_scaled_bytes()

        @ti.func
        def field(headers: ti.template(), at, x):
            nibbles = (headers[at] >> ti.static(4 * number)) & 0x0F0F0F0F
            return scaled_bytes(nibbles, x * half(headers[at + 1][0] >> ti.static(16 * number)))

        return field

    return make


DECODER = make_byte_decoder(
    q2_k.SCHEME, PLANES, unpack, ByteVectors(0, byte_vector, _make_field(0), make_minima=_make_field(1), mean=1.5)
)
