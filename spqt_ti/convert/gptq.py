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
from spqt_ti.kernels.pack.compensated import BATCH, ColumnQuantizer
from spqt_ti.kernels.pack.quantize import quantize_matrix

__all__ = ["BatchQuantizer", "Factor", "compensate", "factored", "loss", "quantize_columns"]

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
U8Array = npt.NDArray[np.uint8]

# (columns f32 [n, rows], what earlier batches add to their targets f32 [n, rows], what the loss of one adds to a later
# one's target f32 [n, n], their numbers in the matrix [n]) -> what they lose, f32 [n, rows].
BatchQuantizer = Callable[[F32Array, F32Array, F32Array, npt.NDArray[np.integer]], F32Array]

_STRONGER = 10.0  # than the damping asked for, where H is singular all the same


@dataclass(frozen=True)
class Factor:
    """The order in which columns are quantised, i64 [cols], and what errors weigh in later targets.

    `weights` f32 [cols, cols], strictly upper triangular in that order: R_ij / R_jj.
    """

    order: npt.NDArray[np.int64]
    weights: F32Array


def factored(hessian: F64Array, damping: float, ordered: bool = True) -> Factor:
    """Factor H f64 [cols, cols] with `damping` times its mean diagonal added.

    `ordered`: columns of large inputs first, whose errors then have most columns to go to. QuantizationError where H is
    not positive definite even with ten times the damping, or holds NaN or infinity.
    """
    if not np.isfinite(hessian).all():
        raise QuantizationError("the inputs of a matrix hold NaN or infinity on the calibration text")
    diagonal = np.diag(hessian)
    order = np.argsort(-diagonal, kind="stable") if ordered else np.arange(len(diagonal))
    # A = R R^T with R upper triangular: the Cholesky factor of A in reverse order, reversed.
    reverse = order[::-1]
    permuted = hessian[np.ix_(reverse, reverse)]
    mean = float(diagonal.mean()) or 1.0
    for strength in (damping, damping * _STRONGER):
        np.fill_diagonal(permuted, diagonal[reverse] + strength * mean)
        try:
            upper = np.linalg.cholesky(permuted)[::-1, ::-1]
        except np.linalg.LinAlgError:
            continue
        weights = np.empty(upper.shape, np.float32)
        np.divide(upper, np.diag(upper), out=weights, casting="same_kind")
        for j in range(len(order)):
            weights[j, : j + 1] = 0
        return Factor(order, weights)
    raise QuantizationError(
        f"the inputs of a matrix do not span its columns, even with damping {damping * _STRONGER:g}; "
        "calibrate on more text"
    )


def quantize_columns(
    w: F32Array,
    factor: Factor,
    scheme: Scheme,
    quantize: Callable[[F32Array], U8Array] | None = None,
    as_ggml: bool = False,
) -> U8Array:
    """Stored zigzag bytes u8 [nbytes] of `w` f32 [rows, cols], compensated.

    K-quants look longer than ggml for scales and minima, for the least squared error. `as_ggml`: they do not; then the
    bytes are those of rounding where H is diagonal, because nothing is compensated.

    By default the scheme's kernel does a batch of columns at a time, where it has one. `quantize`, stored zigzag bytes
    of one column f32 [rows, 1], does without that, and what the kernel has to leave.
    """
    rows, cols = w.shape
    out = np.empty(layouts.nbytes(rows, cols, "zigzag", scheme), np.uint8)
    in_batches = quantize is None and ColumnQuantizer.supports(scheme)
    batched = ColumnQuantizer(out, rows, cols, scheme, as_ggml) if in_batches else None
    singly = _Singly(out, rows, cols, scheme, quantize or (lambda column: quantize_matrix(column, "zigzag", scheme)))

    def quantized(
        columns: F32Array, carried: F32Array, weights: F32Array, indices: npt.NDArray[np.integer]
    ) -> F32Array:
        lost = batched(columns, carried, weights, indices) if batched else None
        return singly(columns, carried, weights, indices) if lost is None else lost

    compensate(w, factor, quantized)
    return out


def compensate(w: F32Array, factor: Factor, quantize: BatchQuantizer) -> None:
    """Hand the columns of `w` f32 [rows, cols] to `quantize` in their order, BATCH at a time, with what is to be added
    to them.
    """
    rows, cols = w.shape
    losses = np.zeros((cols, rows), np.float32)  # d_j of the columns in their order
    for start in range(0, cols, BATCH):
        batch = slice(start, min(start + BATCH, cols))
        carried = factor.weights[:start, batch].T @ losses[:start]
        columns = np.ascontiguousarray(w[:, factor.order[batch]].T)
        losses[batch] = quantize(columns, carried, factor.weights[batch, batch], factor.order[batch])


def loss(difference: npt.NDArray[np.floating], hessian: F64Array) -> float:
    """tr(dW H dW^T) of dW [rows, cols]: the squared error of the outputs on the text."""
    d = difference.astype(np.float64)
    return float(np.sum((d @ hessian) * d))


class _Singly:
    """Quantises the columns of a batch by a launch each: as `ColumnQuantizer`, for any quantiser."""

    def __init__(
        self, out: U8Array, rows: int, cols: int, scheme: Scheme, quantize: Callable[[F32Array], U8Array]
    ) -> None:  # fmt: skip
        self._out, self._rows, self._scheme, self._quantize = out, rows, scheme, quantize
        self._pieces: list[tuple[int, int]] = []  # first byte of a band, bytes of a column in it
        start = 0
        for count in layouts.band_rows(rows):
            size = layouts.band_bytes(count, scheme)
            self._pieces.append((start, size))
            start += size * cols

    def __call__(
        self, columns: F32Array, carried: F32Array, weights: F32Array, indices: npt.NDArray[np.integer]
    ) -> F32Array:  # fmt: skip
        losses = np.zeros_like(columns)
        for j, index in enumerate(indices):
            target = columns[j] + carried[j] + weights[:j, j] @ losses[:j]
            data = self._quantize(target[:, None])
            losses[j] = columns[j] - layouts.dequantize_matrix(data, self._rows, 1, "zigzag", self._scheme)[:, 0]
            self._put(int(index), data)
        return losses

    def _put(self, column: int, data: U8Array) -> None:
        """The bytes of one column, bands one after the other, to their offsets."""
        read = 0
        for start, size in self._pieces:
            at = start + column * size
            self._out[at : at + size] = data[read : read + size]
            read += size
