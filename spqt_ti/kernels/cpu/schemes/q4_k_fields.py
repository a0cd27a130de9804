"""What a Q4_K superblock's header says of its eight sub-blocks: a scale and a minimum each."""

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.vectors import f32x8, f32x16, u32x8
from spqt_ti.kernels.shared.words import half


def _signed(words: list[int]) -> list[int]:
    return [int(np.uint32(w).view(np.int32)) for w in words]


# A field is masked where it lies in its word and the power of two of its first bit goes into a constant: no shifts.
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


def make_scales_and_minima():
    """Build the ti.func (header, x) -> f32 x 16: x d scale of the eight sub-blocks, then x dmin min."""
    helpers = native.load()
    fast = helpers is not None

    @ti.func
    def scales_and_minima(header, x):
        both = f32x16(0.0)
        if ti.static(fast):
            h = header
            xj = x
            helpers.scales_and_minima(h, xj, both)
        else:
            scales = x * scales_of(header)
            minima = x * minima_of(header)
            parts = [scales, minima]
            both = f32x16(*[parts[i // 8][i % 8] for i in ti.static(range(16))])
        return both

    return scales_and_minima


@ti.func
def per_row(eight, v: ti.template(), high: ti.template()):
    """Values of the eight sub-blocks -> 16 lanes, for the nibbles `high` of words vector v."""
    return f32x16(*[eight[4 * v + high + 2 * (i // 8)] for i in ti.static(range(16))])
