"""Schemes whose 256 rows of a column become four vectors of bytes: lane i, byte b of vector t is row 64 t + 16 b + i.

A byte is the quant plus `zero`, so that it has no sign; 16 rows share a scale.
"""

from collections.abc import Callable

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.cpu.multiply_add import make_multiply_add
from spqt_ti.kernels.cpu.schemes.decoder import ByteVectors, Decoder
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.kernels.shared.geometry import Planes

UNIT = (1.0, 2.0**-8, 2.0**-16, 1.0)  # of `bytes_in_place`: the top byte would be negative as i32


def words_of_bytes(values: np.ndarray) -> np.ndarray:
    """Bytes of rows in order, u8 [n, 256] -> words u32 [n, 4, 16]."""
    lanes = values.reshape(-1, 4, 4, 16).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(lanes).view("<u4")[..., 0]


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
) -> Decoder:
    """The decoder of a scheme whose superblocks have this form."""
    quant_vectors, header_vectors = planes.quant_vectors, planes.header_vectors
    bytes_in_place, byte_vector, make_scales = make_bytes_in_place(form.zero), form.vector, form.make_scales

    def make_add_superblock():
        multiply_add, _ = make_multiply_add()
        scales_of = make_scales()

        @ti.func
        def add_superblock(panel: ti.template(), index, x, sums: ti.template(), offsets: ti.template()):
            scales = scales_of(panel.headers, panel.headers_from + header_vectors * index, x)
            for t in ti.static(range(4)):
                words = byte_vector(panel.quants, panel.quants_from + quant_vectors * index, t)
                for b in ti.static(range(4)):
                    multiply_add(sums[4 * t + b], bytes_in_place(words, b), f32x16(scales[4 * t + b]))

        return add_superblock

    def make_write_rows():
        @ti.func
        def write_rows(a: ti.template(), sums_at, band, out):
            for k in ti.static(range(16)):
                a[out + k] = a[sums_at + 16 * band + k] * UNIT[k % 4]

        return write_rows

    def make_decode_strip():
        scales_of = make_scales()

        @ti.func
        def decode_strip(m: ti.template(), index, height, a: ti.template(), tile, start, columns, strip):
            for j in range(columns):
                at = index + (start + j) * height
                scales = scales_of(m.headers, m.headers_base + header_vectors * at, 1.0)
                words = byte_vector(m.quants, m.quants_base + quant_vectors * at, strip)
                for b in ti.static(range(4)):
                    a[tile + 4 * j + b] = (bytes_in_place(words, b) * UNIT[b]) * scales[4 * strip + b]

        return decode_strip

    return Decoder(scheme, planes, unpack, make_add_superblock, make_write_rows, make_decode_strip, byte_vectors=form)
