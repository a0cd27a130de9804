"""The zigzag Q4_K weights of a matrix as GPU kernels read them: stored bytes, headers and quants apart, no padding.

Both are arrays of four words, so that a lane reads 128 bits at once: a header, or an eighth of a superblock's quants
(32 nibbles). A simdgroup of 32 lanes thus has four superblocks at work. Of the last band, whose superblocks may be
shorter, the lanes beyond read the last words again; what they compute belongs to rows that do not exist.
"""

from dataclasses import dataclass

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import layout, q4_k
from spqt_ti.kernels.shared.words import half
from spqt_ti.kernels.simt.splits import LANES

BAND = 256
PARTS = 8  # lanes that share a superblock
SLOTS = LANES // PARTS  # superblocks that a simdgroup has at work
words4 = ti.types.vector(4, ti.u32)


@dataclass(frozen=True)
class ZigzagWords:
    """Where a matrix [rows, cols] lies in its two arrays of four words each."""

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
    def last_parts(self) -> int:
        """Entries of quants in a superblock of the last band: 8, 6, 4 or 2."""
        return 2 * -(-layout.band_rows(self.rows)[-1] // 64)

    @property
    def quants(self) -> int:
        """Entries of quants in all."""
        return self.cols * ((self.bands - 1) * PARTS + self.last_parts)

    @property
    def headers(self) -> int:
        """Entries of headers in all, one per superblock."""
        return self.cols * self.bands


def split(data: np.ndarray, shape: ZigzagWords) -> tuple[np.ndarray, np.ndarray]:
    """Stored bytes (u8 [nbytes]) -> quants u32 [shape.quants, 4] and headers u32 [shape.headers, 4], superblocks in
    their stored order.

    Raises QuantizationError if the number of bytes is not that of the shape.
    """
    layout.check_size(data, shape.rows, shape.cols, "zigzag", q4_k.SCHEME)
    cut = (shape.bands - 1) * shape.cols * 144
    whole, last = data[:cut].reshape(-1, 144), data[cut:].reshape(shape.cols, -1)
    quants = np.concatenate([whole[:, 16:].reshape(-1), last[:, 16:].reshape(-1)])
    headers = np.concatenate([whole[:, :16], last[:, :16]])
    return quants.view("<u4").reshape(-1, 4), headers.view("<u4")


@ti.func
def step_and_minimum(header: ti.template(), sub_block):
    """d * scale and dmin * min of a sub-block, from the four words of its superblock's header."""
    shift = ti.cast((sub_block & 3) * 8, ti.u32)
    low, high, both = header[1] >> shift, header[2] >> shift, header[3] >> shift
    # Without a branch, which loads would not be moved across.
    scale = ti.select(sub_block >= 4, (both & 15) | ((low >> 2) & 48), low & 63)
    minimum = ti.select(sub_block >= 4, ((both >> 4) & 15) | ((high >> 2) & 48), high & 63)
    return half(header[0]) * ti.cast(scale, ti.f32), half(header[0] >> 16) * ti.cast(minimum, ti.f32)


@ti.func
def row_of(word, byte, high):
    """Row, within its band, of nibble `high` of byte `byte` of a superblock's word."""
    return (word >> 3) * 64 + (word & 7) * 4 + byte + 32 * high
