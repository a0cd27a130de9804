"""Geometry of zigzag matrices, and their superblocks as kernels read them."""

import numpy as np
import pytest
from device_vectors import download, upload
from q4_k_matrices import random_fields, random_matrix

from spqt_ti.backend import start, ti
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout, q4_k
from spqt_ti.kernels.cpu.schemes.q4_k import DECODER
from spqt_ti.kernels.cpu.schemes.q4_k_fields import minima_of, scales_of
from spqt_ti.kernels.cpu.vectors import array_of, f32x8, f32x16, u32x4, u32x16
from spqt_ti.kernels.cpu.zigzag import ZigzagShape, unpack
from spqt_ti.kernels.shared.words import NIBBLE_UNIT, half, nibbles_in_place

# Rows: around one pair of sub-blocks (the tail band), around a band, SmolLM2's stacks.
ROWS = [1, 32, 33, 64, 65, 224, 255, 256, 257, 320, 321, 576, 960, 3072, 6000, 8500]


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@ti.kernel
def halves(out: array_of(ti.f32)):
    for bits in range(65536):
        out[bits] = half(ti.cast(bits, ti.u32) | 0x3ABC0000)


@ti.kernel
def decode_headers(headers: array_of(u32x4), n: ti.i32, scales: array_of(f32x8), minima: array_of(f32x8)):
    for i in range(n):
        scales[i] = scales_of(headers[i])
        minima[i] = minima_of(headers[i])


@ti.kernel
def take_nibbles(words: array_of(u32x16), n: ti.i32, out: array_of(f32x16)):
    for i in range(n):
        for byte in ti.static(range(4)):
            for high in ti.static(range(2)):
                out[i * 8 + 2 * byte + high] = nibbles_in_place(words[i], byte, high) * NIBBLE_UNIT[2 * byte + high]


@pytest.mark.parametrize("rows", ROWS)
def test_shape(rows) -> None:
    shape = ZigzagShape(rows, 7)
    assert shape.bands == shape.full_bands + shape.tail_bands == -(-rows // 256)
    assert shape.padded_rows == 256 * shape.bands
    assert shape.tail_bands == (0 < rows % 256 <= 64)
    assert (shape.headers, shape.quant_vectors, shape.tail_vectors) == (
        7 * shape.bands,
        7 * 2 * shape.full_bands,
        7 * shape.tail_bands,
    )


@pytest.mark.parametrize("rows", ROWS)
def test_bytes_per_column(rows) -> None:
    """What an active input costs is what is stored, but for a last band that is completed to 256 rows at load."""
    stored, read = layout.nbytes(rows, 7, "zigzag", q4_k.SCHEME), 7 * ZigzagShape(rows, 7).bytes_per_column
    assert stored == read if rows % 256 == 0 or rows % 256 <= 64 or rows % 256 > 192 else stored < read


def test_panels() -> None:
    """Of what is left after whole panels, more than 16 bands are two."""
    assert ZigzagShape(5 * 256, 1, 2).panels == [(0, 2), (2, 2), (4, 1)]
    assert ZigzagShape(16 * 256, 1).panels == [(0, 16)]
    assert ZigzagShape(31 * 256, 1).panels == [(0, 16), (16, 15)]
    assert ZigzagShape(14336, 1).panels == [(0, 32), (32, 16), (48, 8)]


@pytest.mark.parametrize("panel_bands", [1, 2, 32])
@pytest.mark.parametrize("rows", ROWS)
def test_unpack_keeps_every_byte(rows, panel_bands) -> None:
    cols = 5
    data, shape = random_matrix(rows, cols, "zigzag").data, ZigzagShape(rows, cols, panel_bands)
    quants, tail, headers = unpack(data, shape, DECODER)
    superblocks = layout.superblocks(data, rows, cols, "zigzag", q4_k.SCHEME)
    # A column's superblocks of a panel side by side, then the next column's.
    order = [
        band * cols + column
        for start, height in shape.panels
        for column in range(cols)
        for band in range(start, start + height)
    ]
    superblocks = np.concatenate([superblocks[order], superblocks[shape.full_bands * cols :]])
    np.testing.assert_array_equal(headers, superblocks[:, :16].copy().view("<u4"))
    full = shape.full_bands * cols
    np.testing.assert_array_equal(quants.reshape(full, 32), superblocks[:full, 16:].copy().view("<u4"))
    np.testing.assert_array_equal(tail, superblocks[full:, 16:48].copy().view("<u4"))


@pytest.mark.parametrize("change", [-1, 1])
def test_unpack_refuses_another_size(change) -> None:
    data = np.zeros(layout.nbytes(300, 5, "zigzag", q4_k.SCHEME) + change, np.uint8)
    with pytest.raises(QuantizationError, match=r"\[300, 5\] Q4_K matrix \(zigzag\) is uint8 \[960\], not"):
        unpack(data, ZigzagShape(300, 5), DECODER)


def test_every_half() -> None:
    out = ti.ndarray(ti.f32, (65536,))
    halves(out)
    expected = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(download(out), expected)


def test_headers() -> None:
    """Scales and minima are exact: 11 bits of f16 times 6 bits."""
    fields = random_fields(500, np.random.default_rng(0))
    superblocks = q4_k.pack(fields)
    scales, minima = upload(np.zeros(4000), f32x8), upload(np.zeros(4000), f32x8)
    decode_headers(upload(superblocks[:, :16].copy().view("<u4"), u32x4), 500, scales, minima)
    d, dmin = (f.astype(np.float64)[:, None] for f in (fields.d, fields.dmin))
    np.testing.assert_array_equal(download(scales).reshape(-1, 8), d * fields.scales)
    np.testing.assert_array_equal(download(minima).reshape(-1, 8), dmin * fields.mins)


def test_nibbles() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (100, 16), np.uint32)
    words[0], words[1] = 0, 2**32 - 1
    out = upload(np.zeros(100 * 8 * 16))
    take_nibbles(upload(words, u32x16), 100, out)
    expected = words[:, None, :] >> (4 * np.arange(8, dtype=np.uint32))[:, None] & 15
    np.testing.assert_array_equal(download(out).reshape(100, 8, 16), expected)
