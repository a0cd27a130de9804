"""Q3_K for GPUs. A piece's quants are the low pairs, then the plane of third bits, as they are stored, but with these
bits turned over, which makes a quant less 4. A lane reads 128 bits of pairs, half of which are its neighbour's, and
half of the plane.

A header is the scales as stored, with the top bit of each turned over, which makes a scale less 32; d; and two bytes of
nothing.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.schemes.decoder import SIGNED_UNITS, Decoder, first_of_pair, load_one, one_each, signed_byte

_PAIRS, _SCALES = 32, 96  # first bytes of the fields of a superblock, after the bits
_UNITS = tuple(unit / 32 for unit in SIGNED_UNITS)  # quants stand in the upper three bits of a byte


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    pairs = superblocks[:, 0, _PAIRS : _PAIRS + 8 * parts]
    return np.concatenate([pairs, ~superblocks[:, 0, :_PAIRS]], axis=1)


def unpack_headers(superblocks: U8Array) -> U8Array:
    headers = np.zeros((len(superblocks), 16), np.uint8)
    headers[:, :14] = superblocks[:, 0, _SCALES:]
    headers[:, 8:12] ^= np.uint8(0b10101010)
    return headers


@ti.func
def pair_number(part, half_index: ti.template()):
    """Which pair of each byte belongs to a lane's half."""
    return (part & 2) + half_index


@ti.func
def pair_entry(part, parts):
    """Where a lane's pairs are: four lanes of each half of a piece share 256 bits."""
    lane = ti.min(part, parts - 1)
    return (lane >> 2) * 2 + (lane & 1)


@ti.func
def entry(part, parts, load: ti.template()):
    index = pair_entry(part, parts)
    if ti.static(load == 1):
        index = (parts >> 1) + (part & 1)
    return index


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """d * scale of the lane's sub-block of this half, and 0."""
    byte = 8 * (2 * half_index + (part & 1))
    low = ti.select((part & 2) > 0, header[1], header[0]) >> ti.cast(byte + 4 * (part >> 2), ti.u32)
    top = header[2] >> ti.cast(byte + 2 * (part >> 1), ti.u32)
    scale = ti.cast(((low & 15) << 26) | ((top & 3) << 30), ti.i32) >> 26
    return half(header[3]) * ti.cast(scale, ti.f32), 0.0


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    """Four quants less 4 in a word, each in the upper three bits of its byte."""
    number = pair_number(part, half_index)
    pairs = words[first, :] >> ti.cast(2 * number, ti.u32)
    bits = words[first + 1, :] >> ti.cast((part & 4) + number, ti.u32)
    return ((pairs & 0x03030303) << 5) | ((bits & 0x01010101) << 7)


DECODER = Decoder(
    bits=2, loads=2, header_words=4, half_stride=32, has_minimum=False, units=_UNITS,
    unpack_quants=unpack_quants, unpack_headers=unpack_headers,
    header_entries=one_each, entry=entry, load_header=load_one,
    step_and_minimum=step_and_minimum, packed=packed, quant=signed_byte, first_value=first_of_pair, shared_entries=2,
)  # fmt: skip
