"""Q3_K on the CPU: a vector of pairs and a header of 48 bytes: the scales as stored but less 32, d, two bytes of
nothing, and the plane of the third bits. byte_vectors.py has the order of both planes.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q3_k
from spqt_ti.kernels.cpu.schemes.byte_vectors import (
    bit_plane,
    bits_of,
    make_byte_decoder,
    make_scaled_bytes,
    pair_plane,
    pairs_of,
    words_of_bytes,
)
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.cpu.vectors import u32x4
from spqt_ti.kernels.shared.geometry import Planes
from spqt_ti.kernels.shared.words import half

PLANES = Planes(quant_vectors=1, header_vectors=3)
ZERO = 4


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 110] -> quants u32 [n, 16], headers u32 [n, 12]."""
    words = words_of_bytes(q3_k.unpack(superblocks)[2])
    header = np.zeros((len(superblocks), 16), np.uint8)
    header[:, :14] = superblocks[:, 96:]
    header[:, 8:12] ^= 0b10101010  # turns over the sixth bit of each scale: less 32, with a sign
    bits = bit_plane(words >> 2 & 0x01010101)
    return pair_plane(words & 0x03030303), np.concatenate([header.view("<u4"), bits], axis=1)


@ti.func
def byte_vector(quants: ti.template(), at, headers: ti.template(), headers_at, t):
    return pairs_of(quants[at], t) | (bits_of(headers, headers_at + 1, t) << 2)


def make_scales():
    """Build the ti.func (headers, at, x) of x times the scale of each 16 rows."""
    scaled_bytes = make_scaled_bytes()

    @ti.func
    def scales_of(headers: ti.template(), at, x):
        header = headers[at]
        # Four times a scale, so that its six bits end at the sign of a byte.
        nibbles = u32x4(*[((header[k % 2] >> (4 * (k // 2))) & 0x0F0F0F0F) << 2 for k in ti.static(range(4))])
        tops = u32x4(*[((header[2] >> (2 * k)) & 0x03030303) << 6 for k in ti.static(range(4))])
        return scaled_bytes(nibbles | tops, x * (half(header[3]) * 0.25))

    return scales_of


DECODER = make_byte_decoder(q3_k.SCHEME, PLANES, unpack, ByteVectors(ZERO, byte_vector, make_scales))
