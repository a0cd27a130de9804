"""Q6_K on the CPU: two vectors of nibbles, one of bit pairs, and a header of 32 bytes (16 scales; d).

Lane i, byte b of nibble vector v has the low four bits of row 128 v + 16 b + i and of the row 64 further.
byte_vectors.py has the order of pairs.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q6_k
from spqt_ti.kernels.cpu.schemes.byte_vectors import (
    make_byte_decoder,
    make_scaled_bytes,
    nibble_planes,
    pair_plane,
    pairs_of,
    words_of_bytes,
)
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.shared.geometry import Planes
from spqt_ti.kernels.shared.words import half

PLANES = Planes(quant_vectors=3, header_vectors=2)
ZERO = 32


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 210] -> quants u32 [n, 48], headers u32 [n, 8]."""
    d, scales, quants = q6_k.unpack(superblocks)
    words = words_of_bytes(quants)
    planes = np.concatenate([nibble_planes(words).reshape(-1, 32), pair_plane(words >> 4 & 0x03030303)], axis=1)
    headers = np.zeros((len(superblocks), 32), np.uint8)
    headers[:, :16] = scales.view(np.uint8)
    headers[:, 16:18] = d[:, None].view(np.uint8)
    return planes, headers.view("<u4")


@ti.func
def byte_vector(quants: ti.template(), at, headers: ti.template(), headers_at, t):
    low = (quants[at + (t >> 1)] >> (4 * (t & 1))) & 0x0F0F0F0F
    return low | (pairs_of(quants[at + 2], t) << 4)


def make_scales():
    """Build the ti.func (headers, at, x) of x times the scale of each 16 rows."""
    scaled_bytes = make_scaled_bytes()

    @ti.func
    def scales_of(headers: ti.template(), at, x):
        return scaled_bytes(headers[at], x * half(headers[at + 1][0]))

    return scales_of


DECODER = make_byte_decoder(q6_k.SCHEME, PLANES, unpack, ByteVectors(ZERO, byte_vector, make_scales))
