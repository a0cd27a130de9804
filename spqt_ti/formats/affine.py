"""Sub-blocks with a scale and a minimum, as Q2_K, Q4_K and Q5_K have them: a value is `scale * q - minimum`.

Gives ggml's numbers (`make_qkx2_quants` without an importance matrix). To do so it adds up in ggml's order, in f32 and
without fused multiply-adds: arrays are laid out `[values of a sub-block, sub-blocks]`, so that a Python loop over the
first axis is ggml's loop over a sub-block.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.rounding import nearest_int, sum_rows
from spqt_ti.formats.scheme import F32Array, U8Array

__all__ = [
    "HEADER_BYTES",
    "Fields",
    "Header",
    "Search",
    "dequantize",
    "multiples",
    "pack_header",
    "quantize_fields",
    "requantize",
    "search",
    "unpack_header",
]

I32Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Search:
    """How a scheme looks for the scale and the minimum of a sub-block.

    `largest`: the largest quant. `tries` divisors are tried, the first of them `largest + first` over the range of the
    values, the following ones 0.1 more each. `absolute`: errors count as they are, otherwise squared.
    """

    largest: int
    first: float
    tries: int
    absolute: bool = False

    def divisor(self, number: int) -> np.float32:
        """Quants over the range of the values, for try `number`."""
        return np.float32(self.first) + np.float32(0.1) * np.float32(number) + np.float32(self.largest)

    def levels(self, x: F32Array, divisor: F32Array, low: F32Array) -> I32Array:
        """Quants of values."""
        return np.clip(nearest_int(divisor * (x - low)), 0, self.largest)

    def error(self, x: F32Array, w: F32Array, quants: I32Array, scale: F32Array, low: F32Array) -> F32Array:
        """Weighted error of a sub-block."""
        difference = scale * quants.astype(np.float32) + low - x
        return sum_rows(w * (np.abs(difference) if self.absolute else difference * difference))


def search(x: F32Array, w: F32Array, how: Search) -> tuple[F32Array, F32Array, I32Array]:
    """Best scale f32 `[m]`, minimum f32 `[m]` (>= 0, to subtract) and quants i32 `[values, m]` of `x` f32 `[values, m]`
    with weights `w`.

    For each divisor a weighted least-squares fit gives scale and minimum. An improvement replaces the minimum that the
    *following* tries start from.
    """
    low, high = np.minimum(x.min(axis=0), np.float32(0)), x.max(axis=0)
    flat = high == low
    sum_w, sum_x = sum_rows(w), sum_rows(w * x)
    divisor = np.float32(how.largest) / (high - low)
    scale, quants = np.float32(1) / divisor, how.levels(x, divisor, low)
    best = how.error(x, w, quants, scale, low)
    for number in range(how.tries):
        tried = how.levels(x, how.divisor(number) / (high - low), low)
        new_scale, new_low, solvable = _fit(x, w, tried, sum_w, sum_x)
        error = how.error(x, w, tried, new_scale, new_low)
        better = solvable & (error < best)
        best, scale, low = (np.where(better, a, b) for a, b in ((error, best), (new_scale, scale), (new_low, low)))
        quants = np.where(better, tried, quants)
    return np.where(flat, np.float32(0), scale), -low, np.where(flat, 0, quants)


def _fit(
    x: F32Array, w: F32Array, quants: I32Array, sum_w: F32Array, sum_x: F32Array
) -> tuple[F32Array, F32Array, npt.NDArray[np.bool_]]:
    """Weighted least squares of `x ~ scale * quants + low`, `low <= 0`: scale, low, and whether there is a solution."""
    level = quants.astype(np.float32)
    wl = w * level
    sum_l, sum_l2, sum_xl = sum_rows(wl), sum_rows(wl * level), sum_rows(wl * x)
    det = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / det
    low = (sum_l2 * sum_x - sum_l * sum_xl) / det
    positive = low > 0
    return np.where(positive, sum_xl / sum_l2, scale), np.where(positive, np.float32(0), low), det > 0


def multiples(parts: F32Array, largest: int) -> tuple[npt.NDArray[np.float16], U8Array]:
    """f16 super-scale `[n]` and its multiples u8 `[n, sub-blocks]` up to `largest`, of scales (or minima) f32 `[n,
    sub-blocks]`. A negative one wraps around in a byte, as ggml's does.
    """
    most = np.maximum(parts.max(axis=1), np.float32(0))
    inverse = np.where(most > 0, np.float32(largest) / most, np.float32(0))
    return (most / np.float32(largest)).astype(np.float16), nearest_int(inverse[:, None] * parts).astype(np.uint8)


def requantize(x: F32Array, step: F32Array, offset: F32Array, searched: I32Array, largest: int) -> I32Array:
    """Quants i32 `[values, m]` for the final scales and minima f32 `[m]`; those searched where a scale is zero."""
    return np.where(step == 0, searched, np.clip(nearest_int((x + offset) / step), 0, largest))


HEADER_BYTES = 16


@dataclass(frozen=True)
class Header:
    """What Q4_K and Q5_K begin with: `f16 d | f16 dmin | u8 scales[12]`, a 6-bit scale and a 6-bit minimum for each of
    eight sub-blocks.
    """

    d: npt.NDArray[np.float16]  # [n]
    dmin: npt.NDArray[np.float16]  # [n]
    scales: U8Array  # [n, 8], 0..63
    mins: U8Array  # [n, 8], 0..63

    @property
    def steps(self) -> F32Array:
        """Scales of the sub-blocks, f32 [n, 8]."""
        steps: F32Array = self.d.astype(np.float32)[:, None] * self.scales.astype(np.float32)
        return steps

    @property
    def offsets(self) -> F32Array:
        """Minima of the sub-blocks, f32 [n, 8]."""
        offsets: F32Array = self.dmin.astype(np.float32)[:, None] * self.mins.astype(np.float32)
        return offsets


@dataclass(frozen=True)
class Fields(Header):
    """A header with the quants of its superblock, which are not yet packed."""

    quants: U8Array  # [n, 256]


def quantize_fields(values: F32Array, how: Search, name: str) -> Fields:
    """Superblocks f32 `[n, 256]` of eight sub-blocks: the search of each, then 6-bit scales and minima, then the final
    quants. QuantizationError, with the scheme's `name`, where a scale does not fit f16.
    """
    n = len(values)
    x = np.ascontiguousarray(values.reshape(n * 8, 32).T)
    w = np.sqrt(sum_rows(x * x) / np.float32(32)) + np.abs(x)
    scales, minima, searched = search(x, w, how)
    d, scale = multiples(scales.reshape(n, 8), 63)
    dmin, low = multiples(minima.reshape(n, 8), 63)
    if not (np.isfinite(d).all() and np.isfinite(dmin).all()):
        raise QuantizationError(f"values too large for {name}: a scale exceeds f16's 65504")
    header = Header(d, dmin, np.minimum(scale, np.uint8(63)), np.minimum(low, np.uint8(63)))
    quants = requantize(x, header.steps.reshape(-1), header.offsets.reshape(-1), searched, how.largest)
    return Fields(d, dmin, header.scales, header.mins, quants.T.reshape(n, 256).astype(np.uint8))


def dequantize(steps: F32Array, offsets: F32Array, quants: U8Array) -> F32Array:
    """Values f32 `[n, 256]` of scales and minima f32 `[n, sub-blocks]` and quants u8 `[n, 256]`."""
    count, sub_blocks = steps.shape
    values = quants.astype(np.float32).reshape(count, sub_blocks, 256 // sub_blocks)
    values *= steps[:, :, None]
    values -= offsets[:, :, None]
    return values.reshape(count, 256)


def unpack_header(header: U8Array) -> Header:
    """Fields of u8 `[n, 16]`."""
    d = np.ascontiguousarray(header[:, :4]).view(np.float16)
    low, high, both = header[:, 4:8], header[:, 8:12], header[:, 12:16]
    # Sub-blocks 4..7: low four bits in `both`, high two bits on top of the bytes of sub-blocks 0..3.
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 6) << 4)], axis=1)
    mins = np.concatenate([high & 63, (both >> 4) | ((high >> 6) << 4)], axis=1)
    return Header(d[:, 0], d[:, 1], scales, mins)


def pack_header(header: Header, out: U8Array) -> None:
    """Write the bytes of a header to u8 `[n, 16]`; scales and minima must be in range."""
    out[:, :4] = np.stack([header.d, header.dmin], axis=1).astype(np.float16).view(np.uint8)
    out[:, 4:8] = header.scales[:, :4] | ((header.scales[:, 4:] >> 4) << 6)
    out[:, 8:12] = header.mins[:, :4] | ((header.mins[:, 4:] >> 4) << 6)
    out[:, 12:16] = (header.scales[:, 4:] & 15) | ((header.mins[:, 4:] & 15) << 4)
