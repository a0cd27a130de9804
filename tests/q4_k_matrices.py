"""Q4_K matrices that use the whole range of every field, and what their products should be in float64."""

from dataclasses import dataclass, replace

import numpy as np

from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k


@dataclass(frozen=True)
class Matrix:
    """Stored bytes of a matrix [rows, cols] in a layout; `weights` f64; `parts` f64: d scale q + dmin min, never less
    than |weights|, to which rounding errors are proportional; `largest_scales` f64: 63 d."""

    data: np.ndarray
    weights: np.ndarray
    parts: np.ndarray
    largest_scales: np.ndarray

    def tolerance(self, x: np.ndarray) -> np.ndarray:
        """Allowed error per row: 1e-6 of the sum of |terms|.

        f32 rounds each of n additions by 6e-8 of the partial sum; errors of random sign give 6e-8 sqrt(n) at most, 1e-6
        at n = 256, and products of a few thousand inputs are sums of partial sums of that length (measured: 3e-7). One
        input lost, used twice or rounded is seen: it is 1 / cols of the sum, so above 1e-4.
        """
        return 1e-6 * (self.parts @ np.abs(x.astype(np.float64)))

    def step_tolerance(self, x: np.ndarray) -> np.ndarray:
        """Allowed error per row where x d and x d scale are rounded to 16 bits (see kernels/cpu/tile_sums.py): six
        standard deviations of the sum of cols errors.

        A step is at most 1 / 32767 of the row's largest 63 x d. Each rounding is off by half a step at most, times a
        quant of up to 15, less the mean of 7.5 that is taken off. One input lost is seen: it is worth thousands of
        steps.
        """
        largest = (self.largest_scales * np.abs(x.astype(np.float64))).max(axis=1)
        return 6 / np.sqrt(12) * np.sqrt(2) * 7.5 * np.sqrt(np.count_nonzero(x)) * largest / 32767


def random_fields(count: int, rng: np.random.Generator) -> q4_k.Fields:
    """Fields of `count` superblocks: all scales, minima and quants alike; some super-scales zero or denormal in f16."""
    d, dmin = rng.uniform(0.0005, 0.002, (2, count)) * rng.choice([1.0, 0.0, 0.01, 1.0, 1.0], (2, count))
    steps = rng.integers(0, 64, (2, count, 8), np.uint8)
    return q4_k.Fields(
        d.astype(np.float16), dmin.astype(np.float16), steps[0], steps[1], rng.integers(0, 16, (count, 256), np.uint8)
    )


def make_matrix(rows: int, cols: int, layout: str, fields: q4_k.Fields) -> Matrix:
    """The matrix that stores these superblocks (`superblock_count` of them). What pads it is not zero."""
    data = _stored(rows, cols, layout, fields)
    added = _stored(rows, cols, layout, replace(fields, dmin=-fields.dmin))
    ones, most = np.ones_like(fields.quants), np.full_like(fields.scales, 63)
    scales = _stored(rows, cols, layout, replace(fields, dmin=0 * fields.dmin, scales=most, quants=ones))
    parts = (data, added, scales)
    return Matrix(
        data, *(layouts.dequantize_matrix(d, rows, cols, layout, q4_k.SCHEME).astype(np.float64) for d in parts)
    )


def random_matrix(rows: int, cols: int, layout: str, seed: int = 0) -> Matrix:
    fields = random_fields(superblock_count(rows, cols, layout), np.random.default_rng(seed))
    return make_matrix(rows, cols, layout, fields)


def integer_matrix(rows: int, cols: int, layout: str, seed: int = 0) -> Matrix:
    """Every weight is an integer in 0..15, so that sums of them are exact in f32."""
    count = superblock_count(rows, cols, layout)
    quants = np.random.default_rng(seed).integers(0, 16, (count, 256), np.uint8)
    one, ones = np.ones(count, np.float16), np.ones((count, 8), np.uint8)
    return make_matrix(rows, cols, layout, q4_k.Fields(one, 0 * one, ones, 0 * ones, quants))


def superblock_count(rows: int, cols: int, layout: str) -> int:
    """Superblocks of a matrix, truncated ones included."""
    return rows * -(-cols // 256) if layout == "row" else cols * -(-rows // 256)


def _stored(rows: int, cols: int, layout: str, fields: q4_k.Fields) -> np.ndarray:
    superblocks = q4_k.pack(fields)
    if layout == "row":
        return superblocks.reshape(-1)
    last = layouts.band_bytes(layouts.band_rows(rows)[-1], q4_k.SCHEME)  # of a superblock of the last band
    return np.concatenate([superblocks[:-cols].reshape(-1), superblocks[-cols:, :last].reshape(-1)])
