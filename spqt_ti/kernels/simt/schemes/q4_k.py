"""Q4_K for GPUs: a lane has a sub-block, whose 32 nibbles stand in its 128 bits: values `4 word + byte` low, those 16
further on high. A header has d and dmin in its first word. Byte k of the next two is the scale of sub-block k and the
low two bits of its minimum, nibble k of the last word the upper four.

A nibble becomes a float without a conversion, of which many GPUs do a fraction per clock: its bits replace the top of
the mantissa of 1, which gives 1 + q / 16. The sum of the steps is taken off once per row (the bias).
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import affine
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.schemes.decoder import Decoder, load_one, one_each, same_entry

_CHUNK = 2048  # pieces at a time: what they need stays in the cache
_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
_TOP = 19  # where the upper four bits of a mantissa begin


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    """Two sub-blocks are stored as the low and the high nibbles of 32 bytes; here each has 16 bytes of its own."""
    result = np.empty((len(superblocks), 16 * parts), np.uint8)
    for begin in range(0, len(superblocks), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        stored = np.ascontiguousarray(superblocks[rows, 0, affine.HEADER_BYTES : affine.HEADER_BYTES + 16 * parts])
        pairs = stored.view("<u8").reshape(len(stored), parts // 2, 2, 2)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        target = result[rows].view("<u8").reshape(pairs.shape)
        target[:, :, 0] = (first & _LOW) | ((second & _LOW) << 4)
        target[:, :, 1] = ((first >> 4) & _LOW) | (second & ~_LOW)
    return result


def unpack_headers(superblocks: U8Array) -> U8Array:
    stored = superblocks[:, 0, : affine.HEADER_BYTES]
    header = affine.unpack_header(stored)
    upper = header.mins >> 2
    fields = [stored[:, :4], header.scales | (header.mins << 6), upper[:, ::2] | (upper[:, 1::2] << 4)]
    return np.concatenate(fields, axis=1)


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """d * scale and dmin * min of the lane's sub-block."""
    scales = ti.select(part >= 4, header[2], header[1]) >> ti.cast((part & 3) * 8, ti.u32)
    upper = header[3] >> ti.cast(part * 4, ti.u32)
    minimum = ((scales >> 6) & 3) | ((upper & 15) << 2)
    return half(header[0]) * ti.cast(scales & 63, ti.f32), half(header[0] >> 16) * ti.cast(minimum, ti.f32)


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    return words[first, :]


@ti.func
def quant(packed, byte: ti.template(), half: ti.template(), one: ti.template()):
    """1 + q / 16 for one nibble of each word."""
    shift = ti.static(_TOP - (8 * byte + 4 * half))
    # Element by element: Taichi does not convert vectors that it keeps (CUDA).
    moved = [packed[k] << shift if shift > 0 else packed[k] >> -shift for k in ti.static(range(packed.n))]
    return ti.Vector([ti.bit_cast((word & (15 << _TOP)) | one, ti.f32) for word in ti.static(moved)])


@ti.func
def first_value(part):
    return part * 32


DECODER = Decoder(
    bits=4, loads=1, header_words=4, half_stride=16, has_minimum=True, units=(16.0,) * 8, unpack_quants=unpack_quants,
    unpack_headers=unpack_headers, header_entries=one_each, entry=same_entry, load_header=load_one,
    step_and_minimum=step_and_minimum, packed=packed, quant=quant, first_value=first_value, bias=1.0,
)  # fmt: skip
