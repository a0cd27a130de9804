"""Q5_K for GPUs: nibbles, then the plane of fifth bits, and headers, all as they are stored. A lane reads 128 bits of
nibbles, as of Q4_K, and half of the plane, of which its two sub-blocks have a bit each per byte.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.schemes.decoder import (
    UNSIGNED_UNITS,
    Decoder,
    first_of_pair,
    load_one,
    one_each,
    unsigned_byte,
)

_BITS, _NIBBLES = 16, 48  # first bytes of the fields of a superblock


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    nibbles = superblocks[:, 0, _NIBBLES : _NIBBLES + 16 * parts]
    return np.concatenate([nibbles, superblocks[:, 0, _BITS:_NIBBLES]], axis=1)


def unpack_headers(superblocks: U8Array) -> U8Array:
    return superblocks[:, 0, :16]


@ti.func
def entry(part, parts, load: ti.template()):
    index = ti.min(part, parts - 1)
    if ti.static(load == 1):
        index = parts + (part & 1)
    return index


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    """Four quants in the bytes of a word."""
    bits = words[first + 1, :] >> ti.cast((part & -2) + half_index, ti.u32)
    return ((words[first, :] >> (4 * half_index)) & 0x0F0F0F0F) | ((bits & 0x01010101) << 4)


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """d * scale and dmin * min of the lane's sub-block of this half."""
    sub_block = (part & -2) + half_index
    shift = ti.cast((sub_block & 3) * 8, ti.u32)
    low, high, both = header[1] >> shift, header[2] >> shift, header[3] >> shift
    # Without a branch, which loads would not be moved across.
    scale = ti.select(sub_block >= 4, (both & 15) | ((low >> 2) & 48), low & 63)
    minimum = ti.select(sub_block >= 4, ((both >> 4) & 15) | ((high >> 2) & 48), high & 63)
    return half(header[0]) * ti.cast(scale, ti.f32), half(header[0] >> 16) * ti.cast(minimum, ti.f32)


DECODER = Decoder(
    bits=4, loads=2, header_words=4, half_stride=32, has_minimum=True, units=UNSIGNED_UNITS,
    unpack_quants=unpack_quants, unpack_headers=unpack_headers,
    header_entries=one_each, entry=entry, load_header=load_one,
    step_and_minimum=step_and_minimum, packed=packed, quant=unsigned_byte, first_value=first_of_pair, shared_entries=2,
)  # fmt: skip
