"""Q6_K for GPUs. A piece's quants are the low nibbles, then the high bit pairs, as they are stored, but with the upper
bit of each pair turned over, which makes a quant less 32. A lane reads 128 bits of nibbles and 128 bits of pairs, half
of which are its neighbour's: its halves are the sub-blocks of the low and of the high nibbles.

Headers are the scales (i8) of all pieces, an entry each, then their d (f16), eight in an entry: nothing is padded.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.schemes.decoder import SIGNED_UNITS, Decoder, signed_byte

_PAIRS, _SCALES, _D = 128, 192, 208  # first bytes of the fields of a superblock, after the nibbles
_TOP, _LOW = 0xC0C0C0C0 - (1 << 32), 0x3C3C3C3C  # of the six upper bits of each byte, as i32


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    low = superblocks[:, 0, : 16 * parts]
    high = superblocks[:, 0, _PAIRS : _PAIRS + 8 * parts] ^ np.uint8(0b10101010)
    return np.concatenate([low, high], axis=1)


def unpack_headers(superblocks: U8Array) -> U8Array:
    pieces = len(superblocks)
    headers = np.zeros(header_entries(pieces) * 16, np.uint8)
    headers[: pieces * 16] = superblocks[:, 0, _SCALES:_D].reshape(-1)
    headers[pieces * 16 : pieces * 18] = superblocks[:, 0, _D:].reshape(-1)
    return headers


def header_entries(pieces: int) -> int:
    return pieces + -(-pieces // 8)


_UNITS = tuple(unit / 4 for unit in SIGNED_UNITS)  # quants stand in the upper six bits of a byte


@ti.func
def entry(part, parts, load: ti.template()):
    lane = ti.min(part, parts - 1)
    entry = lane
    if ti.static(load == 1):
        entry = parts + (lane >> 2) * 2 + (lane & 1)
    return entry


@ti.func
def load_header(headers: ti.template(), at, piece, pieces: ti.template()):
    """The four words of scales, and one that has d in its lower half."""
    scales = headers[at + piece]
    eight = headers[at + pieces + (piece >> 3)]
    first = ti.select((piece & 4) > 0, eight[2], eight[0])
    second = ti.select((piece & 4) > 0, eight[3], eight[1])
    d = ti.select((piece & 2) > 0, second, first) >> ti.cast((piece & 1) * 16, ti.u32)
    return ti.Vector([scales[0], scales[1], scales[2], scales[3], d])


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """d * scale of the lane's sub-block of this half, and 0."""
    word = ti.select(part >= 4, header[2 + half_index], header[half_index])
    scale = ti.cast(word << ti.cast(24 - 8 * (part & 3), ti.u32), ti.i32) >> 24
    return half(header[4]) * ti.cast(scale, ti.f32), 0.0


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    """Four quants less 32 in a word, each in the upper six bits of its byte."""
    pairs = words[first + 1, :] >> ti.cast(part & 2, ti.u32)
    result = (words[first, :] << 2 & _LOW) | (pairs << 6 & _TOP)
    if ti.static(half_index == 1):
        result = (words[first, :] >> 2 & _LOW) | (pairs << 2 & _TOP)
    return result


@ti.func
def first_value(part):
    return (part >> 2) * 128 + (part & 3) * 16


DECODER = Decoder(
    bits=6, loads=2, header_words=5, half_stride=64, has_minimum=False, units=_UNITS, unpack_quants=unpack_quants,
    unpack_headers=unpack_headers, header_entries=header_entries, entry=entry, load_header=load_header,
    step_and_minimum=step_and_minimum, packed=packed, quant=signed_byte, first_value=first_value,
)  # fmt: skip
