"""Q4_K, ggml's 4-bit "k-quant" (llama.cpp), in NumPy: 256 values in 144 bytes, 4.5 bits per weight.

A superblock is `f16 d | f16 dmin | u8 scales[12] | u8 quants[128]` and holds 8 sub-blocks of 32 values. Sub-block `j`
has a 6-bit scale and a 6-bit minimum, and a value is `d * scale_j * q - dmin * min_j` with `q` in 0..15.

The quantiser gives ggml's bytes (`quantize_row_q4_K_ref` without an importance matrix). To do so it adds up in ggml's
order, in f32 and without fused multiply-adds: arrays are laid out `[32, sub-blocks]`, so that a Python loop over the
first axis is ggml's loop over a sub-block.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.rounding import nearest_int, sum_rows
from spqt_ti.formats.scheme import Plane, Scheme

__all__ = ["BYTES", "SCHEME", "SUB_BLOCK", "VALUES", "Fields", "dequantize", "pack", "quantize", "unpack"]

VALUES = 256
BYTES = 144
SUB_BLOCK = 32

_SUB_BLOCKS = VALUES // SUB_BLOCK
_STEPS = 21
_CHUNK = 1024  # superblocks at a time: bounds the temporaries to a few MB
_F32 = npt.NDArray[np.float32]
_U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fields:
    """The parts of `n` superblocks, one value per array element (quants are not yet packed in pairs)."""

    d: npt.NDArray[np.float16]  # [n]
    dmin: npt.NDArray[np.float16]  # [n]
    scales: _U8  # [n, 8], 0..63
    mins: _U8  # [n, 8], 0..63
    quants: _U8  # [n, 256], 0..15


def quantize(values: _F32) -> _U8:
    """Quantise f32 `[n, 256]` to superblocks u8 `[n, 144]`, byte for byte as ggml does.

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and for values so large that a
    scale does not fit f16 (below about -4e6, above about 6e7): ggml stores an infinite scale, which dequantises to NaN.
    """
    SCHEME.check_values(values)
    out = np.empty((len(values), BYTES), np.uint8)
    for start in range(0, len(values), _CHUNK):
        out[start : start + _CHUNK] = pack(_quantize_fields(values[start : start + _CHUNK]))
    return out


def dequantize(superblocks: _U8) -> _F32:
    """Values f32 `[n, 256]` of superblocks u8 `[n, 144]`, bit for bit as ggml computes them."""
    fields = unpack(superblocks)
    scale = fields.d.astype(np.float32)[:, None] * fields.scales.astype(np.float32)
    minimum = fields.dmin.astype(np.float32)[:, None] * fields.mins.astype(np.float32)
    values = fields.quants.astype(np.float32).reshape(-1, _SUB_BLOCKS, SUB_BLOCK)
    values *= scale[:, :, None]
    values -= minimum[:, :, None]
    return values.reshape(-1, VALUES)


def unpack(superblocks: _U8) -> Fields:
    """Split superblocks u8 `[n, 144]` into their fields."""
    SCHEME.check_superblocks(superblocks)
    head = np.ascontiguousarray(superblocks[:, :4]).view(np.float16)
    low, high, both = superblocks[:, 4:8], superblocks[:, 8:12], superblocks[:, 12:16]
    # Sub-blocks 4..7: low four bits in `both`, high two bits on top of the bytes of sub-blocks 0..3.
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([high & 63, (both >> 4) | ((high >> 6) << 4)], axis=1)
    pairs = superblocks[:, 16:].reshape(-1, _SUB_BLOCKS // 2, SUB_BLOCK)
    quants = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(-1, VALUES)
    return Fields(head[:, 0], head[:, 1], scales, mins, quants)


def pack(fields: Fields) -> _U8:
    """Superblocks u8 `[n, 144]` of the fields; the inverse of `unpack`. Scales, minima and quants must be in range."""
    superblocks = np.empty((len(fields.d), BYTES), np.uint8)
    superblocks[:, :4] = np.stack([fields.d, fields.dmin], axis=1).astype(np.float16).view(np.uint8)
    superblocks[:, 4:8] = fields.scales[:, :4] | ((fields.scales[:, 4:] >> 4) << 6)
    superblocks[:, 8:12] = fields.mins[:, :4] | ((fields.mins[:, 4:] >> 4) << 6)
    superblocks[:, 12:16] = (fields.scales[:, 4:] & 15) | ((fields.mins[:, 4:] & 15) << 4)
    pairs = fields.quants.reshape(-1, _SUB_BLOCKS // 2, 2, SUB_BLOCK)
    superblocks[:, 16:] = (pairs[:, :, 0] | (pairs[:, :, 1] << 4)).reshape(-1, VALUES // 2)
    return superblocks


# Overflow, division by zero and NaN happen in ggml too (constant, denormal or huge sub-blocks) and are selected away.
@gradual_underflow()
@np.errstate(all="ignore")
def _quantize_fields(values: _F32) -> Fields:
    """The search of each sub-block, then 6-bit scales and minima per superblock, then the final 4-bit values."""
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * _SUB_BLOCKS, SUB_BLOCK).T)  # [32, n * 8]
    scale, minimum, searched = _search(x)
    d, scales = _six_bits(scale.reshape(n, _SUB_BLOCKS))
    dmin, mins = _six_bits(minimum.reshape(n, _SUB_BLOCKS))
    if not (np.isfinite(d).all() and np.isfinite(dmin).all()):
        raise QuantizationError("values too large for Q4_K: a scale exceeds f16's 65504")
    step = (d.astype(np.float32)[:, None] * scales.astype(np.float32)).reshape(-1)
    offset = (dmin.astype(np.float32)[:, None] * mins.astype(np.float32)).reshape(-1)
    quants = np.where(step == 0, searched, np.clip(nearest_int((x + offset) / step), 0, 15))
    return Fields(d, dmin, scales, mins, quants.T.reshape(n, VALUES).astype(np.uint8))


def _six_bits(parts: _F32) -> tuple[npt.NDArray[np.float16], _U8]:
    """f16 super-scale `[n]` and 6-bit multiples u8 `[n, 8]` of the sub-blocks' scales (or minima) f32 `[n, 8]`."""
    largest = np.maximum(parts.max(axis=1), np.float32(0))
    inverse = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
    # ggml stores the integer in a byte before it limits it to 63, so a negative scale wraps around.
    multiples = np.minimum(nearest_int(inverse[:, None] * parts) & 255, 63)
    return (largest / np.float32(63)).astype(np.float16), multiples.astype(np.uint8)


def _search(x: _F32) -> tuple[_F32, _F32, npt.NDArray[np.int32]]:
    """Best scale f32 `[m]`, minimum f32 `[m]` (>= 0, to subtract) and quants i32 `[32, m]` of `x` f32 `[32, m]`.

    Tries 21 divisors around the min-max one; for each, a weighted least-squares fit gives scale and minimum. An
    improvement replaces the minimum that the *following* tries start from.
    """
    w = np.sqrt(sum_rows(x * x) / np.float32(32)) + np.abs(x)
    low, high = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)
    flat = high == low
    sum_w, sum_x = sum_rows(w), sum_rows(w * x)
    divisor = np.float32(15) / (high - low)
    scale, quants = np.float32(1) / divisor, _levels(x, divisor, low)
    best = _error(x, w, quants, scale, low)
    for step in range(_STEPS):
        divisor = (np.float32(-1) + np.float32(0.1) * np.float32(step) + np.float32(15)) / (high - low)
        tried = _levels(x, divisor, low)
        new_scale, new_low, solvable = _fit(x, w, tried, sum_w, sum_x)
        error = _error(x, w, tried, new_scale, new_low)
        better = solvable & (error < best)
        best, scale, low = (np.where(better, a, b) for a, b in ((error, best), (new_scale, scale), (new_low, low)))
        quants = np.where(better, tried, quants)
    return np.where(flat, np.float32(0), scale), -low, np.where(flat, 0, quants)


def _fit(
    x: _F32, w: _F32, quants: npt.NDArray[np.int32], sum_w: _F32, sum_x: _F32
) -> tuple[_F32, _F32, npt.NDArray[np.bool_]]:
    """Weighted least squares of `x ~ scale * quants + low`, `low <= 0`: scale, low, and whether there is a solution."""
    level = quants.astype(np.float32)
    wl = w * level
    sum_l, sum_l2, sum_xl = sum_rows(wl), sum_rows(wl * level), sum_rows(wl * x)
    det = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / det
    low = (sum_l2 * sum_x - sum_l * sum_xl) / det
    positive = low > 0
    return np.where(positive, sum_xl / sum_l2, scale), np.where(positive, np.float32(0), low), det > 0


def _levels(x: _F32, divisor: _F32, low: _F32) -> npt.NDArray[np.int32]:
    return np.clip(nearest_int(divisor * (x - low)), 0, 15)


def _error(x: _F32, w: _F32, quants: npt.NDArray[np.int32], scale: _F32, low: _F32) -> _F32:
    difference = scale * quants.astype(np.float32) + low - x
    return sum_rows(w * (difference * difference))


SCHEME = Scheme("q4_k", VALUES, BYTES, 2 * SUB_BLOCK, (Plane(0, 16), Plane(16, 128, 32)), quantize, dequantize)
