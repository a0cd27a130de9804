"""GPTQ in the zigzag layout: a matrix is quantised column after column, and what a column loses is made good for by the
columns after it (Frantar et al., arXiv 2210.17323).

Zigzag is the natural layout for it: a superblock holds 256 outputs of one input, so every column gets scales of its
own, chosen when its target is final. No superblock crosses columns: the order is free and need not be stored, and file
format and kernels stay as they are.

With H = sum x x^T over a text, the loss of dW is tr(dW H dW^T). Damped, reordered and factored as R R^T (R upper
triangular) it is the sum over columns j of |R_jj d_j + sum_{i<j} R_ij d_i|^2. So column j's target is
t_j = w_j + sum_{i<j} (R_ij / R_jj) d_i, where d_i = w_i - q_i are the columns before it.

Knows nothing of models: a matrix and its H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats.scheme import Scheme

__all__ = ["Factor", "factored", "loss", "quantize_columns"]

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
U8Array = npt.NDArray[np.uint8]

_BATCH = 64  # columns whose targets get the errors before them by one matrix product
_STRONGER = 10.0  # than the damping asked for, where H is singular all the same


@dataclass(frozen=True)
class Factor:
    """The order in which columns are quantised, i64 [cols], and what errors weigh in later targets.

    `weights` f64 [cols, cols], strictly upper triangular in that order: R_ij / R_jj.
    """

    order: npt.NDArray[np.int64]
    weights: F64Array


def factored(hessian: F64Array, damping: float, ordered: bool = True) -> Factor:
    """Factor H f64 [cols, cols] with `damping` times its mean diagonal added.

    `ordered`: columns of large inputs first, whose errors then have most columns to go to. QuantizationError where H is
    not positive definite even with ten times the damping, or holds NaN or infinity.
    """
    if not np.isfinite(hessian).all():
        raise QuantizationError("the inputs of a matrix hold NaN or infinity on the calibration text")
    diagonal = np.diag(hessian)
    order = np.argsort(-diagonal, kind="stable") if ordered else np.arange(len(diagonal))
    permuted = hessian[np.ix_(order, order)]
    mean = float(diagonal.mean()) or 1.0
    for strength in (damping, damping * _STRONGER):
        try:
            # A = R R^T with R upper triangular: the Cholesky factor of A in reverse order, reversed.
            lower = np.linalg.cholesky(permuted[::-1, ::-1] + strength * mean * np.eye(len(order)))
        except np.linalg.LinAlgError:
            continue
        upper = lower[::-1, ::-1]
        return Factor(order, np.triu(upper / np.diag(upper), 1))
    raise QuantizationError(
        f"the inputs of a matrix do not span its columns, even with damping {damping * _STRONGER:g}; "
        "calibrate on more text"
    )


def quantize_columns(w: F32Array, factor: Factor, scheme: Scheme, quantize: Callable[[F32Array], U8Array]) -> U8Array:
    """Stored zigzag bytes u8 [nbytes] of `w` f32 [rows, cols], compensated.

    `quantize`: stored zigzag bytes of f32 [rows, 1], one column. With a diagonal H nothing is compensated and the bytes
    are those of `quantize` on every column.
    """
    rows, cols = w.shape
    columns = _Columns(rows, cols, scheme)
    errors = np.zeros((cols, rows))  # d_j of the columns in their order
    ordered = np.ascontiguousarray(w.T[factor.order]).astype(np.float64)  # [cols, rows]
    out = np.empty(layouts.nbytes(rows, cols, "zigzag", scheme), np.uint8)
    for start in range(0, cols, _BATCH):
        last = min(start + _BATCH, cols)
        targets = ordered[start:last] + factor.weights[:start, start:last].T @ errors[:start]
        for j in range(start, last):
            target = targets[j - start] + factor.weights[start:j, j] @ errors[start:j]
            data = quantize(np.ascontiguousarray(target, np.float32)[:, None])
            errors[j] = ordered[j] - layouts.dequantize_matrix(data, rows, 1, "zigzag", scheme)[:, 0]
            columns.put(out, int(factor.order[j]), data)
    return out


def loss(difference: npt.NDArray[np.floating], hessian: F64Array) -> float:
    """tr(dW H dW^T) of dW [rows, cols]: the squared error of the outputs on the text."""
    d = difference.astype(np.float64)
    return float(np.sum((d @ hessian) * d))


class _Columns:
    """Where a column's bytes lie in a zigzag matrix: a piece in each band."""

    def __init__(self, rows: int, cols: int, scheme: Scheme) -> None:
        self._pieces: list[tuple[int, int]] = []  # first byte of a band, bytes of a column in it
        start = 0
        for count in layouts.band_rows(rows):
            size = layouts.band_bytes(count, scheme)
            self._pieces.append((start, size))
            start += size * cols

    def put(self, out: U8Array, column: int, data: U8Array) -> None:
        """The bytes of one column, bands one after the other, to their offsets."""
        read = 0
        for start, size in self._pieces:
            at = start + column * size
            out[at : at + size] = data[read : read + size]
            read += size
