"""Q6_K on the CPU: two vectors of nibbles, one of bit pairs, and a header of 32 bytes (16 scales; d).

Lane i, byte b of nibble vector v has the low four bits of row 128 v + 16 b + i and of the row 64 further. Bits 2 t and
2 t + 1 of that byte of the pairs belong to row 64 t + 16 b + i.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q6_k
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.schemes.byte_vectors import make_byte_decoder, words_of_bytes
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.kernels.shared.geometry import Planes
from spqt_ti.kernels.shared.words import half

PLANES = Planes(quant_vectors=3, header_vectors=2)
ZERO = 32


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 210] -> quants u32 [n, 48], headers u32 [n, 8]."""
    d, scales, quants = q6_k.unpack(superblocks)
    words = words_of_bytes(quants)
    low, high = words & 0x0F0F0F0F, words >> 4 & 0x03030303
    nibbles = low[:, 0::2] | low[:, 1::2] << 4
    pairs = high[:, :1] | high[:, 1:2] << 2 | high[:, 2:3] << 4 | high[:, 3:] << 6
    headers = np.zeros((len(superblocks), 32), np.uint8)
    headers[:, :16] = scales.view(np.uint8)
    headers[:, 16:18] = d[:, None].view(np.uint8)
    return np.concatenate([nibbles, pairs], axis=1).reshape(-1, 48), headers.view("<u4")


@ti.func
def byte_vector(quants: ti.template(), at, t):
    low = (quants[at + (t >> 1)] >> (4 * (t & 1))) & 0x0F0F0F0F
    return low | (((quants[at + 2] >> (2 * t)) & 0x03030303) << 4)


def make_scales():
    """Build the ti.func (headers, at, x) of x times the scale of each 16 rows."""
    helpers = native.load()
    fast = helpers is not None

    @ti.func
    def scales_of(headers: ti.template(), at, x):
        steps = headers[at]
        unit = x * half(headers[at + 1][0])
        scales = f32x16(0.0)
        if ti.static(fast):
            helpers.scaled_bytes(steps, unit, scales)
        else:
            signed = [ti.bit_cast(steps[k // 4] << (24 - 8 * (k % 4)), ti.i32) >> 24 for k in ti.static(range(16))]
            scales = unit * f32x16(*[ti.cast(signed[k], ti.f32) for k in ti.static(range(16))])
        return scales

    return scales_of


DECODER = make_byte_decoder(q6_k.SCHEME, PLANES, unpack, ByteVectors(ZERO, byte_vector, make_scales))
