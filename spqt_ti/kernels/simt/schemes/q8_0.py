"""Q8_0 for GPUs: a lane has one superblock of 32 values. A piece's quants are the first 16 bytes of each superblock,
then the last 16 of each, so that eight lanes read neighbouring entries; its header is the eight scales (f16).
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.schemes.decoder import SIGNED_UNITS, Decoder, load_one, one_each, signed_byte


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    halves = superblocks[:, :parts, 2:].reshape(-1, parts, 2, 16).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(halves).reshape(-1, 32 * parts)


def unpack_headers(superblocks: U8Array) -> U8Array:
    return superblocks[:, :, :2]


@ti.func
def entry(part, parts, load: ti.template()):
    return load * parts + ti.min(part, parts - 1)


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """The lane's scale, and 0."""
    # Selected, because an index that is not a constant would put the header into memory.
    first = ti.select(part >= 4, header[2], header[0])
    second = ti.select(part >= 4, header[3], header[1])
    word = ti.select((part & 2) > 0, second, first)
    return half(word >> ti.cast((part & 1) * 16, ti.u32)), 0.0


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    return words[first + half_index, :]


@ti.func
def first_value(part):
    return part * 32


DECODER = Decoder(
    bits=8, loads=2, header_words=4, half_stride=16, has_minimum=False, units=SIGNED_UNITS, unpack_quants=unpack_quants,
    unpack_headers=unpack_headers, header_entries=one_each, entry=entry, load_header=load_one,
    step_and_minimum=step_and_minimum, packed=packed, quant=signed_byte, first_value=first_value,
)  # fmt: skip
