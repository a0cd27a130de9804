"""Q3_K, ggml's 3-bit "k-quant" (llama.cpp), in NumPy: 256 values in 110 bytes, 3.4375 bits per weight.

A superblock is `u8 high[32] | u8 quants[64] | u8 scales[12] | f16 d` and holds 16 sub-blocks of 16 values; a value is
`d * (scale - 32) * (q - 4)` with `q` in 0..7 and `scale` in 0..63. The low two bits of the quants are in the order of
pairs.py; bit `j` of `high[l]` is the third bit of value `32 j + l`. The low nibbles of scales 0..7 and 8..15 are the
nibbles of the first 8 bytes, and pair `k` of byte `8 + i` is the high bits of scale `4 k + i`.

The quantiser gives ggml's bytes (`quantize_row_q3_K_ref` without an importance matrix). Arrays are laid out `[16,
sub-blocks]`, so that a Python loop over the first axis is ggml's loop over a sub-block.
"""

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import pairs
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.rounding import nearest_int, sum_rows
from spqt_ti.formats.scheme import F32Array, Plane, Scheme, U8Array

__all__ = ["BYTES", "SCHEME", "SUB_BLOCK", "VALUES", "dequantize", "pack", "quantize", "unpack"]

VALUES = 256
BYTES = 110
SUB_BLOCK = 16

_SUB_BLOCKS = VALUES // SUB_BLOCK
_QUANTS, _SCALES, _D = 32, 96, 108  # where these fields begin
_PASSES = 5  # over a sub-block, which improve its quants one by one
_CHUNK = 1024  # superblocks at a time: bounds the temporaries to a few MB
_TINY = np.float32(1e-15)  # ggml's GROUP_MAX_EPS: below it a sub-block is zero
_BITS = np.arange(8, dtype=np.uint8)[:, None]  # of a byte of `high`, by 32 values
_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_I8 = npt.NDArray[np.int8]
_I32 = npt.NDArray[np.int32]


def quantize(values: F32Array) -> U8Array:
    """Quantise f32 `[n, 256]` to superblocks u8 `[n, 110]`, byte for byte as ggml does.

    Raises QuantizationError for another dtype or shape, for NaN and infinity, and where d does not fit f16.
    """
    SCHEME.check_values(values)
    out = np.empty((len(values), BYTES), np.uint8)
    for start in range(0, len(values), _CHUNK):
        out[start : start + _CHUNK] = _quantize(values[start : start + _CHUNK])
    return out


def dequantize(superblocks: U8Array) -> F32Array:
    """Values f32 `[n, 256]` of superblocks u8 `[n, 110]`, bit for bit as ggml computes them."""
    d, scales, quants = unpack(superblocks)
    step = d.astype(np.float32)[:, None] * scales.astype(np.float32)
    values = quants.astype(np.float32).reshape(-1, _SUB_BLOCKS, SUB_BLOCK) - np.float32(4)
    return (step[:, :, None] * values).reshape(-1, VALUES)


def unpack(superblocks: U8Array) -> tuple[npt.NDArray[np.float16], _I8, U8Array]:
    """d f16 `[n]`, scales i8 `[n, 16]` (-32..31) and quants u8 `[n, 256]` (0..7) of superblocks u8 `[n, 110]`."""
    SCHEME.check_superblocks(superblocks)
    high = superblocks[:, None, :_QUANTS] >> _BITS & np.uint8(1)
    quants: U8Array = pairs.unpack(superblocks[:, _QUANTS:_SCALES]) | high.reshape(-1, VALUES) << np.uint8(2)
    nibbles, tops = superblocks[:, _SCALES : _SCALES + 8], superblocks[:, None, _SCALES + 8 : _D] >> _PAIRS & 3
    low = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    scales: _I8 = (low | tops.reshape(-1, _SUB_BLOCKS) << 4).view(np.int8) - np.int8(32)
    return np.ascontiguousarray(superblocks[:, _D:]).view(np.float16)[:, 0], scales, quants


def pack(d: npt.NDArray[np.float16], scales: _I8, quants: U8Array) -> U8Array:
    """Superblocks u8 `[n, 110]`: the inverse of `unpack`."""
    superblocks = np.empty((len(d), BYTES), np.uint8)
    superblocks[:, :_QUANTS] = np.bitwise_or.reduce((quants >> 2).reshape(-1, 8, 32) << _BITS, axis=1)
    superblocks[:, _QUANTS:_SCALES] = pairs.pack(quants & np.uint8(3))
    six_bits = (scales + np.int8(32)).view(np.uint8)
    superblocks[:, _SCALES : _SCALES + 8] = six_bits[:, :8] & 15 | (six_bits[:, 8:] & 15) << 4
    superblocks[:, _SCALES + 8 : _D] = np.bitwise_or.reduce((six_bits >> 4).reshape(-1, 4, 4) << _PAIRS, axis=1)
    superblocks[:, _D:] = d[:, None].view(np.uint8)
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
    empty = largest == 0
    inverse = np.float32(-32) / largest
    d = np.where(empty, np.float32(0), np.float32(1) / inverse).astype(np.float16)
    if not np.isfinite(d).all():
        raise QuantizationError("values too large for Q3_K: d exceeds f16's 65504")
    # ggml cuts the integer to a byte before it limits it.
    multiples = np.clip(nearest_int(inverse[:, None] * parts).astype(np.int8), -32, 31)
    multiples[empty] = -32  # a stored zero
    step = (d.astype(np.float32)[:, None] * multiples.astype(np.float32)).reshape(-1)
    levels = np.clip(nearest_int(x / step), -4, 3) + 4
    quants = np.where(step == 0, searched, levels).T.reshape(n, VALUES).astype(np.uint8)
    return pack(d, multiples, quants)


def _search(x: F32Array) -> tuple[F32Array, _I32]:
    """Scale f32 `[m]` and quants i32 `[16, m]` (0..7) of sub-blocks `x` f32 `[16, m]`: ggml's `make_q3_quants`.

    Starts with the value of largest magnitude at -4. Then each quant in turn takes the integer that fits best with the
    scale of the others, where that makes the weighted least-squares fit (weights x^2) explain more.
    """
    most = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    tiny = np.abs(most) < _TINY
    w = x * x
    levels = np.clip(nearest_int(np.float32(-4) / most * x), -4, 3)
    level = levels.astype(np.float32)
    sum_lx, sum_l2 = sum_rows(w * x * level), sum_rows(w * level * level)
    for _ in range(_PASSES):
        for i in range(SUB_BLOCK):
            old = levels[i].astype(np.float32)
            lx = sum_lx - w[i] * x[i] * old
            l2 = sum_l2 - w[i] * old * old
            tried = np.clip(nearest_int(x[i] * l2 / lx), -4, 3)
            new = tried.astype(np.float32)
            new_lx, new_l2 = lx + w[i] * x[i] * new, l2 + w[i] * new * new
            more = new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            better = (lx > 0) & (tried != levels[i]) & (new_l2 > 0) & more
            levels[i] = np.where(better, tried, levels[i])
            sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, np.float32(0))
    return np.where(tiny, np.float32(0), scale), np.where(tiny, 0, levels + 4)


SCHEME = Scheme(
    "q3_k", VALUES, BYTES, 128, (Plane(0, 32), Plane(_QUANTS, pairs.BYTES, 32), Plane(_SCALES, 12), Plane(_D, 2)),
    quantize, dequantize,
)  # fmt: skip
