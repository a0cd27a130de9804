"""Q8_0, ggml's 8-bit format (llama.cpp), in NumPy: 32 values in 34 bytes, `f16 d | i8 quants[32]`, value `d * q`."""

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.rounding import round_away
from spqt_ti.formats.scheme import Plane, Scheme

__all__ = ["BYTES", "SCHEME", "VALUES", "dequantize", "quantize"]

VALUES = 32
BYTES = 34

_F32 = npt.NDArray[np.float32]
_U8 = npt.NDArray[np.uint8]


def quantize(values: _F32) -> _U8:
    """Quantise f32 `[n, 32]` to blocks u8 `[n, 34]`, byte for byte as ggml does (`quantize_row_q8_0_ref`).

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and for values beyond 127 * 65504, whose
    scale does not fit f16 (ggml stores an infinite scale there). Blocks below 4e-37, whose inverse scale overflows and
    for which C leaves the result open, become zeros, as ggml's do on x86.
    """
    SCHEME.check_values(values)
    with gradual_underflow(), np.errstate(all="ignore"):
        scale = np.abs(values).max(axis=1) / np.float32(127)
        d = scale.astype(np.float16)
        inverse = np.float32(1) / scale
    if not np.isfinite(d).all():
        raise QuantizationError("values too large for Q8_0: a scale exceeds f16's 65504")
    inverse[~np.isfinite(inverse)] = 0
    blocks = np.empty((len(values), BYTES), np.uint8)
    blocks[:, :2] = d[:, None].view(np.uint8)
    blocks[:, 2:] = round_away(values * inverse[:, None]).astype(np.int8).view(np.uint8)
    return blocks


def dequantize(blocks: _U8) -> _F32:
    """Values f32 `[n, 32]` of blocks u8 `[n, 34]`."""
    SCHEME.check_superblocks(blocks)
    d = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * d


SCHEME = Scheme("q8_0", VALUES, BYTES, VALUES, (Plane(0, BYTES),), quantize, dequantize)
