"""Q8_0 on the CPU: 256 bytes of quants, biased by 128, and a header of the eight blocks' scales."""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import q8_0
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.schemes.byte_vectors import make_byte_decoder, words_of_bytes
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors
from spqt_ti.kernels.cpu.vectors import f32x8, f32x16
from spqt_ti.kernels.shared.geometry import Planes
from spqt_ti.kernels.shared.words import half

PLANES = Planes(quant_vectors=4, header_vectors=1)
ZERO = 128


def unpack(superblocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u8 [n, 8 * 34] -> quants u32 [n, 64], headers u32 [n, 4]."""
    blocks = superblocks.reshape(-1, 8, q8_0.BYTES)
    headers = np.ascontiguousarray(blocks[:, :, :2]).reshape(-1, 16).view("<u4")
    quants = np.ascontiguousarray(blocks[:, :, 2:]).reshape(-1, 256) ^ np.uint8(ZERO)
    return words_of_bytes(quants).reshape(-1, 64), headers


@ti.func
def byte_vector(quants: ti.template(), at, headers: ti.template(), headers_at, t):
    return quants[at + t]


def make_scales():
    """Build the ti.func (headers, at, x) of x times the scale of each 16 rows."""
    helpers = native.load()
    fast = helpers is not None

    @ti.func
    def scales_of(headers: ti.template(), at, x):
        header = headers[at]
        eight = f32x8(0.0)
        if ti.static(fast):
            xj = x
            helpers.scaled_halves(header, xj, eight)
        else:
            eight = x * f32x8(*[half(header[k // 2] >> (16 * (k % 2))) for k in ti.static(range(8))])
        return f32x16(*[eight[k // 2] for k in ti.static(range(16))])

    return scales_of


# A byte is ready as it lies: 16 bits took a tenth longer than f32.
DECODER = make_byte_decoder(q8_0.SCHEME, PLANES, unpack, ByteVectors(ZERO, byte_vector, make_scales), in_16_bits=False)
