"""The kernels on NumPy arrays: quantise a matrix once, multiply it with vectors, skip inputs that are too small.

    from spqt_ti import ops
    packed = ops.pack(w)                      # w: f32 [rows, cols], outputs by inputs
    y = ops.gemv(packed, x)                   # W x
    y = ops.sparse_gemv(packed, x, 0.5)       # the same without the inputs |x_i| <= 0.5, whose weights are not read

The backend starts on the first call, on that of SPQT_BACKEND ("cpu" without it), unless the process already has one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spqt_ti import backend
from spqt_ti.errors import BackendError, OperandError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import schemes
from spqt_ti.kernels import drivers
from spqt_ti.kernels.pack.quantize import BACKEND as PACKING_BACKEND
from spqt_ti.kernels.pack.quantize import quantize_matrix

__all__ = ["PackedMatrix", "gemv", "pack", "sparse_gemv"]


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A quantised matrix `[rows, cols]`: its stored bytes u8 `[nbytes]`, the same as in a container's file.

    `scheme`: how values become bytes: one of `formats/names.py`, all of them ggml's. `layout`: "zigzag", where a
    superblock is outputs of one input and an inactive input is never read, or "row", where it is inputs of one output.
    The first product puts the weights on the device, where they stay as long as the object.

    Raises QuantizationError for an unknown scheme or layout, and for bytes of another size than the shape's.
    """

    data: npt.NDArray[np.uint8] = field(repr=False)
    rows: int
    cols: int
    scheme: str = "q4_k"
    layout: str = "zigzag"

    def __post_init__(self) -> None:
        layouts.check_size(self.data, self.rows, self.cols, self.layout, schemes.find(self.scheme))

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights that products are made with, f32 `[rows, cols]`."""
        return layouts.dequantize_matrix(self.data, self.rows, self.cols, self.layout, schemes.find(self.scheme))

    @functools.cached_property
    def _f32(self) -> drivers.ThresholdGemv:
        return self._product(exact=True)

    @functools.cached_property
    def _fastest(self) -> drivers.ThresholdGemv:
        return self._product(exact=False)

    def _product(self, exact: bool) -> drivers.ThresholdGemv:
        _start()
        driver = drivers.row_threshold_gemv if self.layout == "row" else drivers.zigzag_threshold_gemv
        return driver(self.data, self.rows, self.cols, exact, schemes.find(self.scheme))


def pack(w: npt.NDArray[np.float32], *, scheme: str = "q4_k", layout: str = "zigzag") -> PackedMatrix:
    """Quantise `w` f32 `[rows, cols]`: byte for byte as ggml does, on the CPU's kernels where the process has them.

    On a GPU's backend the NumPy quantiser makes the same bytes, much slower: pack in a process on the CPU.
    Raises QuantizationError for another dtype or shape, an unknown scheme or layout, NaN, infinity, and values too
    large for the scheme.
    """
    values = schemes.find(scheme)
    layouts.check_matrix(w, layout)
    rows, cols = w.shape
    if _start().backend == PACKING_BACKEND:
        data = quantize_matrix(w, layout, values, "w")
    else:
        data = layouts.quantize_matrix(w, layout, values)
    return PackedMatrix(data, rows, cols, scheme, layout)


def gemv(matrix: PackedMatrix, x: npt.NDArray[np.float32], *, exact: bool = False) -> npt.NDArray[np.float32]:
    """y = W x, f32 `[rows]`, for x f32 `[cols]`.

    `exact`: in f32. Otherwise all but Q8_0 are multiplied in 16 bits where the CPU can (see docs/design.md).
    Raises OperandError unless x is f32 `[cols]` without NaN and infinity.
    """
    return _multiply(matrix, x, None, exact)


def sparse_gemv(
    matrix: PackedMatrix, x: npt.NDArray[np.float32], threshold: float, *, exact: bool = False
) -> npt.NDArray[np.float32]:
    """y = W x over the inputs `|x_i| > threshold` alone, f32 `[rows]`; others count as zero.

    In the zigzag layout the weights of inactive inputs are not read; in the row layout all are. `exact`: see `gemv`.
    Raises OperandError as `gemv`, and for a threshold that is negative or not a number.
    """
    if not threshold >= 0:
        raise OperandError(f"the threshold must be a number of 0 or more, not {threshold}")
    return _multiply(matrix, x, float(threshold), exact)


def _multiply(
    matrix: PackedMatrix, x: npt.NDArray[np.float32], threshold: float | None, exact: bool
) -> npt.NDArray[np.float32]:
    if x.dtype != np.float32 or x.shape != (matrix.cols,):
        raise OperandError(
            f"a [{matrix.rows}, {matrix.cols}] matrix takes x as float32 [{matrix.cols}], not {x.dtype} {list(x.shape)}"
        )
    if not np.isfinite(x).all():
        raise OperandError(f"x has NaN or infinity at {int(np.flatnonzero(~np.isfinite(x))[0])}")
    return (matrix._f32 if exact else matrix._fastest)(x, threshold)


def _start() -> backend.Runtime:
    """The runtime that is up, else that of SPQT_BACKEND, started now."""
    try:
        return backend.runtime()
    except BackendError:
        return backend.start()
