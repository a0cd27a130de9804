"""Rounding as ggml does it in C, for quantisers that have to give its bytes."""

import numpy as np
import numpy.typing as npt

__all__ = ["nearest_int", "round_away", "sum_rows"]

_F32 = npt.NDArray[np.float32]


def nearest_int(values: _F32) -> npt.NDArray[np.int32]:
    """Round half to even as ggml's `nearest_int` does, by adding 1.5 * 2**23 and reading the mantissa.

    Beyond 2**22, and for NaN and infinity, that is not rounding, but it is what ggml's bytes are made of.
    """
    bits = (values + np.float32(12582912)).view(np.int32)
    return (bits & np.int32(0x007FFFFF)) - np.int32(0x00400000)


def round_away(values: _F32) -> _F32:
    """C's roundf: halves away from zero (adding 0.5 and truncating would be off by one just below a half)."""
    whole = np.trunc(values)
    return whole + np.copysign((np.abs(values - whole) >= np.float32(0.5)).astype(np.float32), values)


def sum_rows(terms: _F32) -> _F32:
    """Sum over the first axis, strictly one row after the other (`np.sum` would add pairwise)."""
    total = terms[0].copy()
    for row in terms[1:]:
        total += row
    return total
