"""The zigzag Q4_K weights of a matrix as GPU kernels read them: stored bytes, headers and quants apart, no padding.

A simdgroup of 32 lanes takes a superblock, a word (8 nibbles) each. Of the last band, whose superblocks may be shorter,
the lanes beyond read the last word again; what they compute belongs to rows that do not exist.
"""

from dataclasses import dataclass

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import layout
from spqt_ti.kernels.zigzag import half

LANES = 32
BAND = 256


@dataclass(frozen=True)
class ZigzagWords:
    """Where a matrix [rows, cols] lies in its two arrays of words."""

    rows: int
    cols: int

    @property
    def bands(self) -> int:
        return -(-self.rows // BAND)

    @property
    def padded_rows(self) -> int:
        """Rows that the kernels write: whole bands."""
        return self.bands * BAND

    @property
    def last_words(self) -> int:
        """Words of quants in a superblock of the last band: 32, 24, 16 or 8."""
        return 8 * -(-layout.band_sub_blocks(self.rows)[-1] // 2)

    @property
    def quants(self) -> int:
        """Words of quants in all."""
        return self.cols * ((self.bands - 1) * LANES + self.last_words)

    @property
    def headers(self) -> int:
        """Words of headers in all, four per superblock."""
        return self.cols * self.bands * 4


def split(data: np.ndarray, shape: ZigzagWords) -> tuple[np.ndarray, np.ndarray]:
    """Stored bytes (u8 [nbytes]) -> quants u32 [shape.quants] and headers u32 [shape.headers], superblocks in their
    stored order.

    Raises QuantizationError if the number of bytes is not that of the shape.
    """
    layout.check_size(data, shape.rows, shape.cols, "zigzag")
    cut = (shape.bands - 1) * shape.cols * 144
    whole, last = data[:cut].reshape(-1, 144), data[cut:].reshape(shape.cols, -1)
    quants = np.concatenate([whole[:, 16:].reshape(-1), last[:, 16:].reshape(-1)])
    headers = np.concatenate([whole[:, :16], last[:, :16]])
    return quants.view("<u4"), headers.reshape(-1).view("<u4")


@ti.func
def step_and_minimum(header: ti.template(), sub_block):
    """d * scale and dmin * min of a sub-block, from the four words of its superblock's header."""
    shift = ti.cast((sub_block & 3) * 8, ti.u32)
    low, high, both = header[1] >> shift, header[2] >> shift, header[3] >> shift
    scale, minimum = low & 63, high & 63
    if sub_block >= 4:
        scale = (both & 15) | ((low >> 2) & 48)
        minimum = ((both >> 4) & 15) | ((high >> 2) & 48)
    return half(header[0]) * ti.cast(scale, ti.f32), half(header[0] >> 16) * ti.cast(minimum, ti.f32)


@ti.func
def row_of(lane, byte, high):
    """Row, within its band, of nibble `high` of byte `byte` in a lane's word."""
    return (lane >> 3) * 64 + (lane & 7) * 4 + byte + 32 * high
