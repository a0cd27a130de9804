"""Row-layout weights of a matrix as kernels read them: what a row has in 256 columns is a superblock of the decoder."""

from typing import Any, NamedTuple

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.formats import layout
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.vectors import f32x16

COLUMNS = 256  # of a superblock
X_VECTORS = 16  # of x per superblock
# Scratch of a worker per superblock of a row. In f32: 16 vectors of x in lane order, their sums. In 16 bits: 4 vectors
# of high bytes, 4 of low ones, the sums, the steps. Then, in both, the flags of the vectors that are not all zero.
ROW_VECTORS = 18


class RowMatrix(NamedTuple):
    """A row-layout matrix as kernels see it: its arrays and their addresses, its first vector in each, rows,
    superblocks per row.
    """

    quants: Any
    quants_base: Any
    headers: Any
    headers_base: Any
    quants_address: Any
    headers_address: Any
    rows: Any
    superblocks: Any


class Rows(NamedTuple):
    """Rows side by side, as lists: the first superblock of each, and of the row that is to be fetched after it; and how
    many superblocks ahead of the computation are fetched.
    """

    starts: Any
    following: Any
    ahead: Any


class ListedRows(NamedTuple):
    """`count` rows of a matrix: `offset` plus the entries of an array of i32 from `first` on."""

    rows: Any
    first: Any
    count: Any
    offset: Any


class RowInputs(NamedTuple):
    """x: f32x16 array and first vector, zero-padded to whole superblocks; inputs |x| <= threshold count as zero."""

    array: Any
    base: Any
    threshold: Any


def row_superblocks(cols: int) -> int:
    """Superblocks of a row of `cols` columns."""
    return -(-cols // COLUMNS)


def unpack(data: np.ndarray, rows: int, cols: int, decoder: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """Stored bytes (u8 [nbytes]) -> quants u32 [superblocks * quant vectors, 16] and headers u32 [superblocks * header
    vectors, 4].

    A row has ceil(cols / 256) superblocks. Raises QuantizationError where `data` has another size.
    """
    scheme = decoder.scheme
    stored = layout.superblocks(data, rows, cols, "row", scheme).reshape(rows, -1)
    superblock = COLUMNS // scheme.values * scheme.bytes
    missing = row_superblocks(cols) * superblock - stored.shape[1]
    padded = np.pad(stored, ((0, 0), (0, missing))) if missing else stored
    quants, headers = decoder.unpack(padded.reshape(-1, superblock))
    return quants.reshape(-1, 16), headers.reshape(-1, 4)


@ti.func
def zero_up_to(v, threshold):
    """v with the lanes |v| <= threshold, and NaN, set to zero."""
    return ti.select(ti.max(v, 0.0 - v) > threshold, v, f32x16(0.0))
