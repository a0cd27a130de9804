"""The zigzag Q4_K weights of a matrix as kernels read them.

Nothing is re-encoded: a superblock's 16-byte header (d, dmin, scales) and its 128 bytes of quants stay as stored, but
in two arrays, so that both are aligned. `word i` of the quants holds rows 4i..4i+3 of a pair of sub-blocks (low
nibbles, high nibbles), which is what one lane of a vector, or one thread of a simdgroup, works on.
"""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import layout, q4_k
from spqt_ti.kernels.cpu.vectors import f32x8, u32x8
from spqt_ti.kernels.shared.geometry import HALF_PANEL_BANDS, ZigzagShape
from spqt_ti.kernels.shared.words import half


def split(data: np.ndarray, shape: ZigzagShape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stored bytes (u8 [nbytes]) as words, superblocks in the order panel, column, band of the panel.

    Returns quants u32 [quant_vectors, 16], tail u32 [tail_vectors, 8] and headers u32 [headers, 4] (the tail's last).

    Raises ValueError if the number of bytes is not that of the shape.
    """
    expected = layout.nbytes(shape.rows, shape.cols, "zigzag", q4_k.SCHEME)
    if data.size != expected:
        raise ValueError(f"zigzag [{shape.rows}, {shape.cols}] takes {expected} bytes, not {data.size}")
    cut = (shape.bands - 1) * shape.cols * 144
    whole, last = data[:cut].reshape(shape.bands - 1, shape.cols, 144), data[cut:].reshape(1, shape.cols, -1)
    tail = last[0, :, 16:48] if shape.tail_bands else np.zeros((0, 32), np.uint8)
    if not shape.tail_bands:
        completed = np.zeros((1, shape.cols, 144), np.uint8)
        completed[:, :, : last.shape[2]] = last
        whole = np.concatenate([whole, completed])
    panels = [whole[start : start + height].transpose(1, 0, 2).reshape(-1, 144) for start, height in shape.panels]
    headers = [panel[:, :16] for panel in panels] + [last[0, :, :16]] * shape.tail_bands
    quants = [panel[:, 16:] for panel in panels] or [np.zeros((0, 128), np.uint8)]
    return _words(np.concatenate(quants), 16), _words(tail, 8), _words(np.concatenate(headers), 4)


@ti.func
def panel_height(panel_bands, left):
    """Bands of the next panel where `left` are left, as ZigzagShape.panels has them."""
    return ti.select(left >= panel_bands, panel_bands, ti.min(left, HALF_PANEL_BANDS))


@ti.func
def panel_start(panel_bands, full_bands, band):
    """First band of the panel that `band` is in."""
    start = band - band % panel_bands
    if full_bands - start < panel_bands:
        start += (band - start) // HALF_PANEL_BANDS * HALF_PANEL_BANDS
    return start


def _words(a: np.ndarray, lanes: int) -> np.ndarray:
    return np.ascontiguousarray(a).view("<u4").reshape(-1, lanes)


def _signed(words: list[int]) -> list[int]:
    return [int(np.uint32(w).view(np.int32)) for w in words]


# A field is masked where it lies in its word and the power of two of its place goes into a constant: no shifts.
# Words 1..3 of a header hold bytes 0-3, 4-7 and 8-11 of Q4_K's packed scales.
_LOW6_HIGH2 = _signed([63 << 8 * j for j in range(4)] + [192 << 8 * j for j in range(4)])
_LOW6_HIGH2_UNIT = [2.0 ** (-8 * j) for j in range(4)] + [2.0 ** (-8 * j - 2) for j in range(4)]
_SCALE4 = _signed([0] * 4 + [15 << 8 * j for j in range(4)])
_SCALE4_UNIT = [0.0] * 4 + [2.0 ** (-8 * j) for j in range(4)]
_MIN4 = _signed([0] * 4 + [240 << 8 * j for j in range(4)])
_MIN4_UNIT = [0.0] * 4 + [2.0 ** (-8 * j - 4) for j in range(4)]


@ti.func
def scales_of(header):
    """d * scale of the eight sub-blocks, f32 x 8."""
    steps = f32x8(*_LOW6_HIGH2_UNIT) * (u32x8(*_LOW6_HIGH2) & header[1])
    steps += f32x8(*_SCALE4_UNIT) * (u32x8(*_SCALE4) & header[3])
    return half(header[0]) * steps


@ti.func
def minima_of(header):
    """dmin * min of the eight sub-blocks, f32 x 8."""
    steps = f32x8(*_LOW6_HIGH2_UNIT) * (u32x8(*_LOW6_HIGH2) & header[2])
    steps += f32x8(*_MIN4_UNIT) * (u32x8(*_MIN4) & header[3])
    return half(header[0] >> 16) * steps
