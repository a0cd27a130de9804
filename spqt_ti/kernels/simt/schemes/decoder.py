"""What a GPU kernel has to know of a weight scheme, whatever its layout.

A *piece* is 256 neighbouring values: what a column has in a band (zigzag), or a stretch of a row (row layout). Eight
lanes share one, its *parts*; a lane has 32 values, in two *halves* of 16 with a scale each. Value `4 word + byte` of
half `h` is entry `first_value(part) + half_stride * h + 4 * word + byte` of the piece.

A piece lies in two arrays of four words (128 bits) each: quants, of which a lane reads `loads` entries, and headers.
A piece of the last band may have fewer parts; its lanes beyond read the last part again, and what they compute belongs
to values that do not exist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import U8Array

PIECE = 256  # values
PARTS = 8  # lanes that share a piece
HALF = 16  # values
ONE = 0x3F800000  # the bits of 1.0
words4 = ti.types.vector(4, ti.u32)
U32Array = npt.NDArray[np.uint32]


class Matrix(NamedTuple):
    """A matrix in arrays of four words: quants and headers, and its first entry in each."""

    quants: Any
    quants_at: Any
    headers: Any
    headers_at: Any


@dataclass(frozen=True)
class Decoder:
    """A scheme's device words and how a lane reads them. Everything from `entry` on is a ti.func."""

    bits: int  # of a quant, in planes of which each part has its own entries
    loads: int  # entries of quants that a lane reads
    header_words: int  # that a lane keeps of a header
    half_stride: int  # values from a part's first half to its second
    has_minimum: bool  # a value is step * quant - minimum, otherwise step * quant
    units: tuple[float, ...]  # what `quant` returns, less the bias, is to be multiplied by, at [2 byte + half]

    # Superblocks u8 [pieces, superblocks of a piece, bytes] and how many parts they have -> u8 [pieces, bytes].
    unpack_quants: Callable[[U8Array, int], U8Array]
    # Superblocks of all pieces of a matrix -> u8 [header_entries(pieces) * 16].
    unpack_headers: Callable[[U8Array], U8Array]
    header_entries: Callable[[int], int]  # of so many pieces

    entry: Any  # (part, parts, load) -> index of a lane's load-th entry in a piece of so many parts
    load_header: Any  # (headers, at, piece, pieces) -> header_words words of one of a matrix's pieces
    step_and_minimum: Any  # (header, part, half)
    packed: Any  # (words [.., n], first, part, half) -> n words: of four quants each, from `loads` rows of words
    quant: (
        Any  # (packed, byte, half, the bits of 1.0) -> f32: one quant of each word, divided by its unit, plus the bias
    )
    first_value: Any  # (part) -> index of a part's first value in its piece

    shared_entries: int = 0  # of a plane of bits that is whole in any piece, behind the other entries
    bias: float = 0.0  # of what `quant` returns

    def entries(self, parts: int) -> int:
        """Entries of quants in a piece of so many parts."""
        return parts * self.bits // 4 + self.shared_entries

    def quants(self, superblocks: U8Array, parts: int) -> U32Array:
        """Entries u32 [pieces * entries, 4] of superblocks u8 [pieces, superblocks of a piece, bytes]."""
        return np.ascontiguousarray(self.unpack_quants(superblocks, parts)).reshape(-1).view("<u4").reshape(-1, 4)

    def headers(self, superblocks: U8Array) -> U32Array:
        """Entries u32 [header_entries, 4] of all pieces of a matrix."""
        return np.ascontiguousarray(self.unpack_headers(superblocks)).reshape(-1).view("<u4").reshape(-1, 4)


def one_each(pieces: int) -> int:
    """Header entries where each piece has one."""
    return pieces


@ti.func
def load_one(headers: ti.template(), at, piece, pieces: ti.template()):
    """The header of a piece, where each has an entry."""
    return headers[at + piece]


@ti.func
def same_entry(part, parts, load: ti.template()):
    """A lane's entry, where it reads one."""
    return ti.min(part, parts - 1)


@ti.func
def first_of_pair(part):
    """The first value of a lane that has 16 values of each of two neighbouring sub-blocks of 32."""
    return (part >> 1) * 64 + (part & 1) * 16


_TOP_BYTE = 0xFF000000 - (1 << 32)  # as Taichi takes it: an i32
SIGNED_UNITS = (2.0**-24,) * 8  # of `signed_byte`


@ti.func
def signed_byte(packed, byte: ti.template(), half: ti.template(), one: ti.template()):
    """One i8 of each word as f32, divided by its unit."""
    # Element by element: Taichi does not convert vectors that it keeps (CUDA).
    return ti.Vector(
        [ti.cast((packed[k] << (24 - 8 * byte)) & _TOP_BYTE, ti.i32) * 1.0 for k in ti.static(range(packed.n))]
    )


UNSIGNED_UNITS = tuple(2.0 ** (-8 * k) for k in (0, 0, 1, 1, 2, 2, 3, 3))  # of `unsigned_byte`


@ti.func
def unsigned_byte(packed, byte: ti.template(), half: ti.template(), one: ti.template()):
    """One byte below 128 of each word as f32, divided by its unit."""
    return (packed & (127 << (8 * byte))) * 1.0


def make_decode_half(decoder: Decoder):
    """Build the ti.func that a thread decodes half of a lane's values with: those of two of each four words."""
    loads, has_minimum, units, bias = decoder.loads, decoder.has_minimum, decoder.units, decoder.bias
    step_and_minimum, packed, quant = decoder.step_and_minimum, decoder.packed, decoder.quant

    @ti.func
    def decode_half(
        loaded: ti.template(), header: ti.template(), part, first_word, target: ti.template(), at: ti.template()
    ):  # fmt: skip
        """Value `4 word + byte` of half h goes to target[at.first + at.stride * (4 word + byte + at.half_stride * h)],
        for words first_word (0 or 2) and the one after it.
        """
        words = ti.Matrix.zero(ti.u32, loads, 2)
        for load, k in ti.static(ti.ndrange(loads, 2)):
            words[load, k] = ti.select(first_word > 0, loaded[load, k + 2], loaded[load, k])
        for half in ti.static(range(2)):
            step, minimum = step_and_minimum(header, part, half)
            quants = packed(words, 0, part, half)
            for byte in ti.static(range(4)):
                values = quant(quants, byte, half, ONE)
                for k in ti.static(range(2)):
                    value = (values[k] - bias) * units[2 * byte + half] * step
                    if ti.static(has_minimum):
                        value -= minimum
                    target[at.first + at.stride * (4 * (first_word + k) + byte + at.half_stride * half)] = value

    return decode_half


class Target(NamedTuple):
    """Where `decode_half` puts values."""

    first: Any
    stride: int
    half_stride: int
