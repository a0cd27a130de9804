"""Schemes whose 256 rows of a column become four vectors of bytes: lane i, byte b of vector t is row 64 t + 16 b + i.

A byte is the quant plus `zero`, so that it has no sign; 16 rows share a scale, and a minimum where there are any.

Bits of quants come in planes of their own. A plane of pairs is a vector of 16 words: bits 2 t and 2 t + 1 of lane i,
byte b belong to vector t. A plane of single bits is eight words, in two vectors of headers: bit 2 t + i // 8 of word
i % 8, byte b.
"""

import functools
from collections.abc import Callable

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes.byte_vectors_16_bits import make_byte_tile
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors, Decoder
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS
from spqt_ti.kernels.cpu.vectors import f32x16, u32x16
from spqt_ti.kernels.shared.geometry import Planes

UNIT = (1.0, 2.0**-8, 2.0**-16, 1.0)  # of `bytes_in_place`: the top byte would be negative as i32


def words_of_bytes(values: np.ndarray) -> np.ndarray:
    """Bytes of rows in order, u8 [n, 256] -> words u32 [n, 4, 16]."""
    lanes = values.reshape(-1, 4, 4, 16).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(lanes).view("<u4")[..., 0]


def nibble_planes(words: np.ndarray) -> np.ndarray:
    """The low nibbles of words u32 [n, 4, 16] -> u32 [n, 2, 16]: vector v has those of vectors 2 v and 2 v + 1."""
    low = words & 0x0F0F0F0F
    planes: np.ndarray = low[:, 0::2] | low[:, 1::2] << 4
    return planes


def pair_plane(pairs: np.ndarray) -> np.ndarray:
    """Pairs in the bytes of words u32 [n, 4, 16] -> u32 [n, 16]."""
    plane: np.ndarray = pairs[:, 0] | pairs[:, 1] << 2 | pairs[:, 2] << 4 | pairs[:, 3] << 6
    return plane


def bit_plane(bits: np.ndarray) -> np.ndarray:
    """Bits in the bytes of words u32 [n, 4, 16] -> u32 [n, 8]."""
    lanes = pair_plane(bits)
    plane: np.ndarray = lanes[:, :8] | lanes[:, 8:] << 1
    return plane


@ti.func
def pairs_of(plane, t):
    """Pairs of vector t, in the bytes of 16 words."""
    return (plane >> (2 * t)) & 0x03030303


@ti.func
def bits_of(headers: ti.template(), at, t):
    """Single bits of vector t of the plane in headers[at], headers[at + 1], in the bytes of 16 words."""
    one, two = headers[at], headers[at + 1]
    plane = [one, two, one >> 1, two >> 1]
    lanes = u32x16(*[plane[i // 4][i % 4] for i in ti.static(range(16))])
    return (lanes >> (2 * t)) & 0x01010101


def make_scaled_bytes():
    """Build the ti.func (words, unit) of `unit` times the 16 signed bytes of four words, f32x16."""
    helpers = native.load()
    fast = helpers is not None

    @ti.func
    def scaled_bytes(words, unit):
        scaled = f32x16(0.0)
        if ti.static(fast):
            bytes_ = words
            factor = unit
            helpers.scaled_bytes(bytes_, factor, scaled)
        else:
            signed = [ti.bit_cast(words[k // 4] << (24 - 8 * (k % 4)), ti.i32) >> 24 for k in ti.static(range(16))]
            scaled = unit * f32x16(*[ti.cast(signed[k], ti.f32) for k in ti.static(range(16))])
        return scaled

    return scaled_bytes


def make_bytes_in_place(zero: int):
    """Build the ti.func (words, byte) of one byte of every lane, less `zero`, as f32 divided by UNIT[byte]: exact."""

    @ti.func
    def bytes_in_place(words, byte: ti.template()):
        result = (words >> 24) * 1.0
        if ti.static(byte < 3):
            result = (words & (255 << (8 * byte))) * 1.0
        return result - ti.static(zero / UNIT[byte])

    return bytes_in_place


def make_byte_decoder(
    scheme: Scheme,
    planes: Planes,
    unpack: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    form: ByteVectors,
    in_16_bits: bool = True,
) -> Decoder:
    """The decoder of a scheme whose superblocks have this form. `in_16_bits`: where the CPU can, mostly faster."""
    quant_vectors, header_vectors = planes.quant_vectors, planes.header_vectors
    bytes_in_place, byte_vector, make_scales = make_bytes_in_place(form.zero), form.vector, form.make_scales
    has_minima = form.make_minima is not None
    minima_of = form.make_minima() if form.make_minima is not None else None

    def make_add_superblock():
        multiply_add, _ = make_multiply_add()
        scales_of = make_scales()

        @ti.func
        def add_superblock(panel: ti.template(), index, x, sums: ti.template(), offsets: ti.template()):
            quants_at = panel.quants_from + quant_vectors * index
            headers_at = panel.headers_from + header_vectors * index
            scales = scales_of(panel.headers, headers_at, x)
            if ti.static(has_minima):
                offsets += minima_of(panel.headers, headers_at, x)  # type: ignore[misc]
            for t in ti.static(range(4)):
                words = byte_vector(panel.quants, quants_at, panel.headers, headers_at, t)
                for b in ti.static(range(4)):
                    multiply_add(sums[4 * t + b], bytes_in_place(words, b), f32x16(scales[4 * t + b]))

        return add_superblock

    def make_write_rows():
        @ti.func
        def write_rows(a: ti.template(), sums_at, band, out):
            for k in ti.static(range(16)):
                y = a[sums_at + 16 * band + k] * UNIT[k % 4]
                if ti.static(has_minima):
                    y = y - f32x16(a[sums_at + 16 * QUAD_BANDS + band][k])
                a[out + k] = y

        return write_rows

    def make_decode_strip():
        scales_of = make_scales()

        @ti.func
        def decode_strip(m: ti.template(), index, height, a: ti.template(), tile, start, columns, strip):
            for j in range(columns):
                at = index + (start + j) * height
                quants_at = m.quants_base + quant_vectors * at
                headers_at = m.headers_base + header_vectors * at
                scales = scales_of(m.headers, headers_at, 1.0)
                words = byte_vector(m.quants, quants_at, m.headers, headers_at, strip)
                minima = f32x16(0.0)
                if ti.static(has_minima):
                    minima = minima_of(m.headers, headers_at, 1.0)  # type: ignore[misc]
                for b in ti.static(range(4)):
                    weights = (bytes_in_place(words, b) * UNIT[b]) * scales[4 * strip + b]
                    if ti.static(has_minima):
                        weights = weights - f32x16(minima[4 * strip + b])
                    a[tile + 4 * j + b] = weights

        return decode_strip

    return Decoder(
        scheme, planes, unpack, make_add_superblock, make_write_rows, make_decode_strip, byte_vectors=form,
        make_fast_tile=functools.partial(make_byte_tile, form, planes) if in_16_bits else None,
    )  # fmt: skip
