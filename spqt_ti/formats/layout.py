"""How a weight matrix `W [rows, cols]` (outputs, inputs) becomes Q4_K superblocks.

* `zigzag` (SpQt, arXiv 2511.04477): a superblock is 256 outputs (a *band*) of one input column, so a column whose
  activation is zero is never read. Superblock `(band, column)` is number `band * cols + column`. The superblocks of a
  last band with fewer rows keep only the bytes that its 32-row sub-blocks need.
* `row`: a superblock is 256 inputs of one output, as in ggml; columns are zero-padded to a multiple of 256.
"""

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q4_k

__all__ = [
    "LAYOUTS",
    "band_bytes",
    "band_sub_blocks",
    "check_matrix",
    "check_size",
    "dequantize_matrix",
    "nbytes",
    "quantize_matrix",
    "superblocks",
]

LAYOUTS = ("zigzag", "row")

_HEADER = 16  # bytes of a superblock before its quants
_PAIR = 32  # bytes of the quants of two sub-blocks, which share bytes
_F32 = npt.NDArray[np.float32]
_U8 = npt.NDArray[np.uint8]


def band_sub_blocks(rows: int) -> list[int]:
    """Number of 32-row sub-blocks in each band of a zigzag matrix: 960 rows -> [8, 8, 8, 6]."""
    return [-(-min(q4_k.VALUES, rows - start) // q4_k.SUB_BLOCK) for start in range(0, rows, q4_k.VALUES)]


def band_bytes(sub_blocks: int) -> int:
    """Stored bytes of a zigzag superblock with this many sub-blocks: 8 -> 144, 6 -> 112, 1 -> 48."""
    return _HEADER + _PAIR * -(-sub_blocks // 2)


def nbytes(rows: int, cols: int, layout: str) -> int:
    """Stored bytes of a `[rows, cols]` matrix. Raises QuantizationError for an unknown layout or an empty matrix."""
    _check_shape(rows, cols, layout)
    if layout == "row":
        return rows * -(-cols // q4_k.VALUES) * q4_k.BYTES
    return cols * sum(band_bytes(count) for count in band_sub_blocks(rows))


def quantize_matrix(w: _F32, layout: str) -> _U8:
    """Stored bytes u8 `[nbytes]` of `w` f32 `[rows, cols]`: the slow reference of `kernels.pack.quantize_q4_k`.

    Raises QuantizationError for another dtype or shape, an unknown layout, NaN, infinity and values too large for Q4_K.
    """
    check_matrix(w, layout)
    rows, cols = w.shape
    if layout == "row":
        return q4_k.quantize(_pad(w, cols_to=q4_k.VALUES).reshape(-1, q4_k.VALUES)).reshape(-1)
    # [bands, 256, cols] -> [bands, cols, 256]: the columns of a band are adjacent.
    padded = _pad(w, rows_to=q4_k.VALUES).reshape(-1, q4_k.VALUES, cols)
    blocks = q4_k.quantize(padded.transpose(0, 2, 1).reshape(-1, q4_k.VALUES))
    full = rows // q4_k.VALUES * cols
    tail = blocks[full:, : _tail_bytes(rows)]
    return np.concatenate([blocks[:full].reshape(-1), tail.reshape(-1)])


def dequantize_matrix(data: _U8, rows: int, cols: int, layout: str) -> _F32:
    """Matrix f32 `[rows, cols]` of the stored bytes u8 `[nbytes]`. Raises QuantizationError on a wrong size."""
    values = q4_k.dequantize(superblocks(data, rows, cols, layout))
    if layout == "row":
        return np.ascontiguousarray(values.reshape(rows, -1)[:, :cols])
    bands = values.reshape(-1, cols, q4_k.VALUES).transpose(0, 2, 1)
    return np.ascontiguousarray(bands.reshape(-1, cols)[:rows])


def superblocks(data: _U8, rows: int, cols: int, layout: str) -> _U8:
    """All superblocks u8 `[n, 144]` of the stored bytes u8 `[nbytes]`, truncated ones completed with zeros.

    Raises QuantizationError where `data` is not u8 or has another size.
    """
    check_size(data, rows, cols, layout)
    if layout == "row" or rows % q4_k.VALUES == 0:
        return data.reshape(-1, q4_k.BYTES)
    full = rows // q4_k.VALUES * cols
    blocks = np.zeros((full + cols, q4_k.BYTES), np.uint8)
    split = full * q4_k.BYTES
    blocks[:full] = data[:split].reshape(-1, q4_k.BYTES)
    blocks[full:, : _tail_bytes(rows)] = data[split:].reshape(cols, -1)
    return blocks


def check_size(data: _U8, rows: int, cols: int, layout: str) -> None:
    """Raise QuantizationError unless `data` is u8 `[nbytes]`, the stored bytes of a `[rows, cols]` matrix."""
    size = nbytes(rows, cols, layout)
    if data.dtype != np.uint8 or data.shape != (size,):
        raise QuantizationError(
            f"a [{rows}, {cols}] Q4_K matrix ({layout}) is uint8 [{size}], not {data.dtype} {list(data.shape)}"
        )


def check_matrix(w: npt.NDArray[np.generic], layout: str) -> None:
    """Raise QuantizationError unless `w` is f32 `[rows, cols]`, not empty, and the layout is known."""
    if w.dtype != np.float32 or w.ndim != 2:
        raise QuantizationError(f"Q4_K takes a float32 [rows, cols] matrix, not {w.dtype} {list(w.shape)}")
    _check_shape(w.shape[0], w.shape[1], layout)


def _check_shape(rows: int, cols: int, layout: str) -> None:
    if layout not in LAYOUTS:
        raise QuantizationError(f"unknown layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    if rows < 1 or cols < 1:
        raise QuantizationError(f"a matrix needs at least one row and one column, not [{rows}, {cols}]")


def _tail_bytes(rows: int) -> int:
    return band_bytes(band_sub_blocks(rows)[-1])


def _pad(w: _F32, rows_to: int = 1, cols_to: int = 1) -> _F32:
    rows, cols = w.shape
    return np.pad(w, ((0, -rows % rows_to), (0, -cols % cols_to)))
