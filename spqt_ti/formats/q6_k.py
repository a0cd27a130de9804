"""Q6_K, ggml's 6-bit "k-quant" (llama.cpp), in NumPy: 256 values in 210 bytes, 6.5625 bits per weight.

A superblock is `u8 ql[128] | u8 qh[64] | i8 scales[16] | f16 d` and holds 16 sub-blocks of 16 values; a value is
`d * scale * (q - 32)` with `q` in 0..63. Each half of 128 values has 64 bytes of low nibbles and 32 bytes of high
pairs: value 32 k + l of a half has nibble `k // 2` of `ql[32 (k & 1) + l]` and the bit pair k of `qh[l]`.

The quantiser gives ggml's bytes (`quantize_row_q6_K_ref`). Arrays are laid out `[16, sub-blocks]`, so that a Python
loop over the first axis is ggml's loop over a sub-block.
"""

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.rounding import nearest_int, sum_rows
from spqt_ti.formats.scheme import F32Array, Plane, Scheme, U8Array

__all__ = ["BYTES", "SCHEME", "SUB_BLOCK", "VALUES", "dequantize", "pack", "quantize", "unpack"]

VALUES = 256
BYTES = 210
SUB_BLOCK = 16

_SUB_BLOCKS = VALUES // SUB_BLOCK
_CHUNK = 1024  # superblocks at a time: bounds the temporaries to a few MB
_TINY = np.float32(1e-15)  # ggml's GROUP_MAX_EPS: below it a sub-block is zero
_I8 = npt.NDArray[np.int8]


def quantize(values: F32Array) -> U8Array:
    """Quantise f32 `[n, 256]` to superblocks u8 `[n, 210]`, byte for byte as ggml does.

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and where d does not fit f16.
    """
    SCHEME.check_values(values)
    out = np.empty((len(values), BYTES), np.uint8)
    for start in range(0, len(values), _CHUNK):
        out[start : start + _CHUNK] = _quantize(values[start : start + _CHUNK])
    return out


def dequantize(superblocks: U8Array) -> F32Array:
    """Values f32 `[n, 256]` of superblocks u8 `[n, 210]`, bit for bit as ggml computes them."""
    d, scales, quants = unpack(superblocks)
    step = d.astype(np.float32)[:, None] * scales.astype(np.float32)
    values = quants.astype(np.float32).reshape(-1, _SUB_BLOCKS, SUB_BLOCK) - np.float32(32)
    return (step[:, :, None] * values).reshape(-1, VALUES)


def unpack(superblocks: U8Array) -> tuple[npt.NDArray[np.float16], _I8, U8Array]:
    """d f16 `[n]`, scales i8 `[n, 16]` and quants u8 `[n, 256]` (0..63) of superblocks u8 `[n, 210]`."""
    SCHEME.check_superblocks(superblocks)
    low = superblocks[:, :128].reshape(-1, 2, 1, 2, 32) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1, 1) & 15
    high = superblocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    quants = (low.reshape(-1, 2, 4, 32) | high << 4).reshape(-1, VALUES).astype(np.uint8, copy=False)
    scales = np.ascontiguousarray(superblocks[:, 192:208]).view(np.int8)
    return np.ascontiguousarray(superblocks[:, 208:]).view(np.float16)[:, 0], scales, quants


def pack(d: npt.NDArray[np.float16], scales: _I8, quants: U8Array) -> U8Array:
    """Superblocks u8 `[n, 210]`: the inverse of `unpack`."""
    superblocks = np.empty((len(d), BYTES), np.uint8)
    halves = quants.reshape(-1, 2, 4, 32)
    superblocks[:, :128] = (halves[:, :, :2] & 15 | (halves[:, :, 2:] & 15) << 4).reshape(-1, 128)
    high = halves >> 4
    fours = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    superblocks[:, 128:192] = fours.reshape(-1, 64)
    superblocks[:, 192:208] = scales.view(np.uint8)
    superblocks[:, 208:] = d[:, None].view(np.uint8)
    return superblocks


# Overflow and division by zero happen in ggml too (tiny or huge sub-blocks) and are selected away.
@gradual_underflow()
@np.errstate(all="ignore")
def _quantize(values: F32Array) -> U8Array:
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * _SUB_BLOCKS, SUB_BLOCK).T)  # [16, n * 16]
    scale, searched = _search(x)
    parts = scale.reshape(n, _SUB_BLOCKS)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=1)[:, None], axis=1)[:, 0]  # the first among equals
    empty = np.abs(largest) < _TINY
    inverse = np.float32(-128) / largest
    d = np.where(empty, np.float32(0), np.float32(1) / inverse).astype(np.float16)
    if not np.isfinite(d).all():
        raise QuantizationError("values too large for Q6_K: d exceeds f16's 65504")
    multiples = np.minimum(nearest_int(inverse[:, None] * parts), 127).astype(np.int8)
    multiples[empty] = 0
    step = (d.astype(np.float32)[:, None] * multiples.astype(np.float32)).reshape(-1)
    levels = np.clip(nearest_int(x / step), -32, 31) + 32
    quants = np.where(step == 0, searched, levels).T.reshape(n, VALUES).astype(np.uint8)
    quants[empty] = 0
    superblocks = pack(d, multiples, quants)
    superblocks[empty] = 0  # ggml clears the whole superblock
    return superblocks


def _search(x: F32Array) -> tuple[F32Array, npt.NDArray[np.int32]]:
    """Scale f32 `[m]` and quants i32 `[16, m]` (0..63) of sub-blocks `x` f32 `[16, m]`: ggml's `make_qx_quants`.

    Tries 19 divisors around the one that maps the value of largest magnitude to -32; a try is better where its
    weighted least-squares fit (weights x^2) explains more.
    """
    most = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    tiny = np.abs(most) < _TINY
    w = x * x
    levels = _levels(x, np.float32(-32) / most)
    sum_lx, sum_l2 = _sums(x, w, levels)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        tried = _levels(x, -(np.float32(32) + np.float32(0.1) * np.float32(step)) / most)
        sum_lx, sum_l2 = _sums(x, w, tried)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        levels = np.where(better, tried, levels)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
    return np.where(tiny, np.float32(0), scale), np.where(tiny, 0, levels + 32)


def _levels(x: F32Array, divisor: F32Array) -> npt.NDArray[np.int32]:
    return np.clip(nearest_int(divisor * x), -32, 31)


def _sums(x: F32Array, w: F32Array, levels: npt.NDArray[np.int32]) -> tuple[F32Array, F32Array]:
    """Weighted sums of x * level and level * level, in ggml's order of operations."""
    level = levels.astype(np.float32)
    return sum_rows(w * x * level), sum_rows(w * level * level)


SCHEME = Scheme(
    "q6_k", VALUES, BYTES, 128, (Plane(0, 128, 64), Plane(128, 64, 32), Plane(192, 16, 8), Plane(208, 2)), quantize,
    dequantize,
)  # fmt: skip
