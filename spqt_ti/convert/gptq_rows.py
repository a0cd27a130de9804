"""GPTQ in the row layout, with static groups: scales and minima are those of rounding, and only quants are compensated.

A superblock of the row layout crosses 256 columns, so its scales have to be known before the first of them is
quantised, whatever the others lose. In zigzag every column has scales of its own (gptq.py). Here for comparison.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt

from spqt_ti.convert.gptq import Factor, compensate
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q4_k, q5_k
from spqt_ti.formats.affine import Fields
from spqt_ti.formats.rounding import nearest_int
from spqt_ti.formats.scheme import F32Array, Scheme, U8Array
from spqt_ti.kernels.pack.quantize import quantize_matrix

__all__ = ["check_scheme", "quantize_in_rows"]

_FORMATS: dict[str, ModuleType] = {"q4_k": q4_k, "q5_k": q5_k}


def check_scheme(scheme: Scheme) -> None:
    """QuantizationError unless `quantize_in_rows` has the scheme."""
    if scheme.name not in _FORMATS:
        known = " and ".join(part.SCHEME.label for part in _FORMATS.values())
        raise QuantizationError(f"GPTQ in the row layout quantises {known}, not {scheme.label}; take zigzag")


def quantize_in_rows(w: F32Array, factor: Factor, scheme: Scheme) -> U8Array:
    """Stored row-layout bytes u8 [nbytes] of `w` f32 [rows, cols], compensated. With a diagonal H nothing is
    compensated: the bytes are those of rounding.

    Raises QuantizationError for a scheme that `check_scheme` refuses, and as `quantize_matrix`.
    """
    check_scheme(scheme)
    form, rows = _FORMATS[scheme.name], len(w)
    fields: Fields = form.unpack(quantize_matrix(w, "row", scheme).reshape(-1, scheme.bytes))
    steps, offsets = (part.reshape(rows, -1).T for part in (fields.steps, fields.offsets))  # [sub-blocks, rows]
    quants = np.ascontiguousarray(fields.quants.reshape(rows, -1).T)

    def quantized(
        columns: F32Array, carried: F32Array, weights: F32Array, indices: npt.NDArray[np.integer]
    ) -> F32Array:
        losses = np.zeros_like(columns)
        for j, index in enumerate(indices):
            step, offset = steps[index // form.SUB_BLOCK], offsets[index // form.SUB_BLOCK]
            target = columns[j] + carried[j] + weights[:j, j] @ losses[:j]
            with np.errstate(divide="ignore", invalid="ignore"):
                levels = np.clip(nearest_int((target + offset) / step), 0, form.SEARCH.largest)
            quants[index] = np.where(step == 0, quants[index], levels)
            losses[j] = columns[j] - (step * quants[index].astype(np.float32) - offset)
        return losses

    compensate(w, factor, quantized)
    packed: U8Array = form.pack(
        Fields(fields.d, fields.dmin, fields.scales, fields.mins, quants.T.reshape(fields.quants.shape))
    )
    return packed.reshape(-1)
