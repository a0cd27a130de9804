"""How a weight matrix `W [rows, cols]` (outputs, inputs) becomes superblocks of a scheme.

* `zigzag` (SpQt, arXiv 2511.04477): superblocks hold outputs of one input column, 256 of them (a *band*) in a row, so a
  column whose activation is zero is never read. What column `c` has in band `b` is number `b * cols + c`. A last band
  with fewer rows keeps only the superblocks, and of its last superblock only the bytes, that its rows need.
* `row`: a superblock holds inputs of one output, as in ggml; columns are zero-padded to whole superblocks.
"""

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.scheme import F32Array, Scheme, U8Array

__all__ = [
    "BAND",
    "LAYOUTS",
    "band_bytes",
    "band_rows",
    "check_matrix",
    "check_size",
    "dequantize_matrix",
    "nbytes",
    "quantize_matrix",
    "superblocks",
]

LAYOUTS = ("zigzag", "row")
BAND = 256  # rows


def band_rows(rows: int) -> list[int]:
    """Rows of each band of a zigzag matrix: 960 rows -> [256, 256, 256, 192]."""
    return [min(BAND, rows - start) for start in range(0, rows, BAND)]


def band_bytes(rows: int, scheme: Scheme) -> int:
    """Stored bytes of one column of a band with this many rows. Q4_K: 256 -> 144, 192 -> 112, 1 -> 48."""
    whole, rest = divmod(rows, scheme.values)
    return whole * scheme.bytes + (scheme.kept(rest).size if rest else 0)


def nbytes(rows: int, cols: int, layout: str, scheme: Scheme) -> int:
    """Stored bytes of a `[rows, cols]` matrix. Raises QuantizationError for an unknown layout or an empty matrix."""
    _check_shape(rows, cols, layout)
    if layout == "row":
        return rows * -(-cols // scheme.values) * scheme.bytes
    return cols * sum(band_bytes(count, scheme) for count in band_rows(rows))


def quantize_matrix(w: F32Array, layout: str, scheme: Scheme) -> U8Array:
    """Stored bytes u8 `[nbytes]` of `w` f32 `[rows, cols]`: the slow reference of the kernels in `kernels/pack`.

    Raises QuantizationError for another dtype or shape, an unknown layout, NaN, infinity and values too large for the
    scheme.
    """
    check_matrix(w, layout)
    rows, cols = w.shape
    if layout == "row":
        return scheme.quantize(_pad(w, cols_to=scheme.values).reshape(-1, scheme.values)).reshape(-1)
    # [bands, 256, cols] -> [bands, cols, 256]: the columns of a band are adjacent.
    padded = _pad(w, rows_to=BAND).reshape(-1, BAND, cols)
    columns = scheme.quantize(padded.transpose(0, 2, 1).reshape(-1, scheme.values)).reshape(-1, _column_bytes(scheme))
    full = rows // BAND * cols
    tail = columns[full:, _tail_bytes(rows, scheme)]
    return np.concatenate([columns[:full].reshape(-1), tail.reshape(-1)])


def dequantize_matrix(data: U8Array, rows: int, cols: int, layout: str, scheme: Scheme) -> F32Array:
    """Matrix f32 `[rows, cols]` of the stored bytes u8 `[nbytes]`. Raises QuantizationError on a wrong size."""
    values = scheme.dequantize(superblocks(data, rows, cols, layout, scheme))
    if layout == "row":
        return np.ascontiguousarray(values.reshape(rows, -1)[:, :cols])
    bands = values.reshape(-1, cols, BAND).transpose(0, 2, 1)
    return np.ascontiguousarray(bands.reshape(-1, cols)[:rows])


def superblocks(data: U8Array, rows: int, cols: int, layout: str, scheme: Scheme) -> U8Array:
    """All superblocks u8 `[n, bytes]` of the stored bytes u8 `[nbytes]`. What a last band leaves out is zero.

    Raises QuantizationError where `data` is not u8 or has another size.
    """
    check_size(data, rows, cols, layout, scheme)
    if layout == "row" or rows % BAND == 0:
        return data.reshape(-1, scheme.bytes)
    full = rows // BAND * cols
    whole = full * _column_bytes(scheme)
    columns = np.zeros((full + cols, _column_bytes(scheme)), np.uint8)
    columns[:full] = data[:whole].reshape(full, columns.shape[1])
    columns[full:, _tail_bytes(rows, scheme)] = data[whole:].reshape(cols, -1)
    return columns.reshape(-1, scheme.bytes)


def check_size(data: U8Array, rows: int, cols: int, layout: str, scheme: Scheme) -> None:
    """Raise QuantizationError unless `data` is u8 `[nbytes]`, the stored bytes of a `[rows, cols]` matrix."""
    size = nbytes(rows, cols, layout, scheme)
    if data.dtype != np.uint8 or data.shape != (size,):
        raise QuantizationError(
            f"a [{rows}, {cols}] {scheme.label} matrix ({layout}) is uint8 [{size}], "
            f"not {data.dtype} {list(data.shape)}"
        )


def check_matrix(w: npt.NDArray[np.generic], layout: str) -> None:
    """Raise QuantizationError unless `w` is f32 `[rows, cols]`, not empty, and the layout is known."""
    if w.dtype != np.float32 or w.ndim != 2:
        raise QuantizationError(f"a matrix to quantise is float32 [rows, cols], not {w.dtype} {list(w.shape)}")
    _check_shape(w.shape[0], w.shape[1], layout)


def _check_shape(rows: int, cols: int, layout: str) -> None:
    if layout not in LAYOUTS:
        raise QuantizationError(f"unknown layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    if rows < 1 or cols < 1:
        raise QuantizationError(f"a matrix needs at least one row and one column, not [{rows}, {cols}]")


def _column_bytes(scheme: Scheme) -> int:
    """Bytes of a column of a whole band."""
    return BAND // scheme.values * scheme.bytes


def _tail_bytes(rows: int, scheme: Scheme) -> npt.NDArray[np.intp]:
    """Indices, in a column of a whole band, of the bytes that a last band stores (none where bands are whole)."""
    whole, rest = divmod(rows % BAND, scheme.values)
    kept = np.arange(whole * scheme.bytes)
    return np.concatenate([kept, whole * scheme.bytes + scheme.kept(rest)]) if rest else kept


def _pad(w: F32Array, rows_to: int = 1, cols_to: int = 1) -> F32Array:
    rows, cols = w.shape
    return np.pad(w, ((0, -rows % rows_to), (0, -cols % cols_to)))
