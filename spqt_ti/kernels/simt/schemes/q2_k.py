"""Q2_K for GPUs: a piece's quants are its pairs, as they are stored, of which a lane reads 128 bits, half of them its
neighbour's.

Headers are the scales and minima of all pieces, an entry each, then their d and dmin (f16), four pieces in an entry:
nothing is padded.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.schemes.decoder import UNSIGNED_UNITS, Decoder, first_of_pair, unsigned_byte
from spqt_ti.kernels.simt.schemes.q3_k import pair_entry, pair_number

_PAIRS, _D = 16, 80  # first bytes of the fields of a superblock, after the scales


def unpack_quants(superblocks: U8Array, parts: int) -> U8Array:
    return superblocks[:, 0, _PAIRS : _PAIRS + 8 * parts]


def unpack_headers(superblocks: U8Array) -> U8Array:
    pieces = len(superblocks)
    headers = np.zeros(header_entries(pieces) * 16, np.uint8)
    headers[: pieces * 16] = superblocks[:, 0, :_PAIRS].reshape(-1)
    headers[pieces * 16 : pieces * 20] = superblocks[:, 0, _D:].reshape(-1)
    return headers


def header_entries(pieces: int) -> int:
    return pieces + -(-pieces // 4)


@ti.func
def entry(part, parts, load: ti.template()):
    return pair_entry(part, parts)


@ti.func
def one_of_four(words, number):
    """Selected, because an index that is not a constant would put the words into memory."""
    first = ti.select((number & 2) > 0, words[2], words[0])
    second = ti.select((number & 2) > 0, words[3], words[1])
    return ti.select((number & 1) > 0, second, first)


@ti.func
def load_header(headers: ti.template(), at, piece, pieces: ti.template()):
    """The four words of scales and minima, and one that has d and dmin."""
    scales = headers[at + piece]
    four = headers[at + pieces + (piece >> 2)]
    return ti.Vector([scales[0], scales[1], scales[2], scales[3], one_of_four(four, piece)])


@ti.func
def step_and_minimum(header: ti.template(), part, half_index: ti.template()):
    """d * scale and dmin * min of the lane's sub-block of this half."""
    both = one_of_four(header, part >> 1) >> ti.cast(8 * (2 * half_index + (part & 1)), ti.u32)
    step = half(header[4]) * ti.cast(both & 15, ti.f32)
    return step, half(header[4] >> 16) * ti.cast((both >> 4) & 15, ti.f32)


@ti.func
def packed(words: ti.template(), first: ti.template(), part, half_index: ti.template()):
    """Four quants in the bytes of a word."""
    return (words[first, :] >> ti.cast(2 * pair_number(part, half_index), ti.u32)) & 0x03030303


DECODER = Decoder(
    bits=2, loads=1, header_words=5, half_stride=32, has_minimum=True, units=UNSIGNED_UNITS,
    unpack_quants=unpack_quants, unpack_headers=unpack_headers,
    header_entries=header_entries, entry=entry, load_header=load_header,
    step_and_minimum=step_and_minimum, packed=packed, quant=unsigned_byte, first_value=first_of_pair,
)  # fmt: skip
