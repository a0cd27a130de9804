"""Zigzag GEMV: y = W[:, active] x[active], for one token.

The active columns are split evenly over the workers. A worker goes through its share once per band, with the band's
256 sums in registers, and writes them once; whoever needs y adds the workers' partial sums in worker order, so a
result never depends on timing.
"""

import functools

import numpy as np

from spqt_ti.backend import address, host_view, ti
from spqt_ti.kernels import native
from spqt_ti.kernels.multiply_add import make_multiply_add
from spqt_ti.kernels.vectors import array_of, f32x8, f32x16, u32x4, u32x8, u32x16, value, vectors_for
from spqt_ti.kernels.workers import share_start
from spqt_ti.kernels.zigzag import NIBBLE_UNIT, ZigzagShape, minima_of, nibbles_in_place, scales_of, split

# Active columns between the one that is computed and the one whose quants are fetched. Random 128-byte pieces defeat
# the hardware prefetcher; without this, skipping is slower than reading everything once weights exceed the cache.
PREFETCH_DISTANCE = 24


def make_gemv(workers: int):
    """Build the ti.func that computes one worker's part of y = W x. Shapes are run-time arguments: one body serves
    every matrix.

    Arguments: the weight arrays quants, tail and headers with the first vector of the matrix in each, the addresses
    of quants and headers, and the matrix's geometry (see ZigzagShape); x with its first vector; the active list with
    its first entry and its length; the partial sums with their first vector; the worker. Worker w writes the whole
    bands of partial sums (16 vectors each) that start at vector `partial_base + w * bands * 16`.
    """
    helpers = native.load()
    prefetches = helpers is not None
    multiply_add16, multiply_add8 = make_multiply_add()

    @ti.func
    def prefetch(quants_address, quants_base, headers_address, headers_base, superblock):
        """Ask for a superblock, counted from the first one of the band."""
        if ti.static(prefetches):
            quants_at = quants_address + (ti.cast((quants_base >> 1) + superblock, ti.i64) << 7)
            header_at = headers_address + (ti.cast(headers_base + superblock, ti.i64) << 4)
            helpers.prefetch128(quants_at)
            helpers.prefetch64(header_at)

    @ti.func
    def full_band(
        quants: ti.template(), quants_base, headers: ti.template(), headers_base, quants_address, headers_address,
        x: ti.template(), x_base, active: ti.template(), first, last, partial: ti.template(), out, next_band,
    ):  # fmt: skip
        # sums[8 v + 2 byte + high], lane i: row 128 v + 64 (i / 8) + 32 high + 4 (i % 8) + byte
        sums = [f32x16(0.0) for _ in ti.static(range(16))]
        offsets = f32x8(0.0)
        for j in range(first, last):
            ahead = j + PREFETCH_DISTANCE
            if ahead < last:
                prefetch(quants_address, quants_base, headers_address, headers_base, active[ahead])
            elif next_band > 0:  # past the end of the list comes its beginning, in the next band
                ahead = ti.min(ahead - (last - first), last - 1)
                prefetch(quants_address, quants_base, headers_address, headers_base, next_band + active[ahead])
            column = active[j]
            xj = value(x, x_base * 16 + column)
            header = headers[headers_base + column]
            scales = xj * scales_of(header)
            offsets += xj * minima_of(header)
            for v in ti.static(range(2)):
                words = quants[quants_base + 2 * column + v]
                for high in ti.static(range(2)):
                    scale = f32x16(*[scales[4 * v + high + 2 * (i // 8)] for i in ti.static(range(16))])
                    for byte in ti.static(range(4)):
                        multiply_add16(sums[8 * v + 2 * byte + high], nibbles_in_place(words, byte, high), scale)
        for v in ti.static(range(2)):
            for high in ti.static(range(2)):
                offset = f32x16(*[offsets[4 * v + high + 2 * (i // 8)] for i in ti.static(range(16))])
                y = [sums[8 * v + 2 * b + high] * NIBBLE_UNIT[2 * b + high] - offset for b in ti.static(range(4))]
                for m in ti.static(range(4)):  # 16 rows in order: lanes 4m..4m+3 of the four sums
                    place = out + 8 * v + 4 * (m // 2) + 2 * high + m % 2
                    partial[place] = f32x16(*[y[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])

    @ti.func
    def tail_band(
        tail: ti.template(), tail_base, headers: ti.template(), headers_base,
        x: ti.template(), x_base, active: ti.template(), first, last, partial: ti.template(), out,
    ):  # fmt: skip
        # sums[2 byte + high], lane i: row 32 high + 4 i + byte
        sums = [f32x8(0.0) for _ in ti.static(range(8))]
        offsets = f32x8(0.0)
        for j in range(first, last):
            column = active[j]
            xj = value(x, x_base * 16 + column)
            header = headers[headers_base + column]
            scales = xj * scales_of(header)
            offsets += xj * minima_of(header)
            words = tail[tail_base + column]
            for high in ti.static(range(2)):
                scale = f32x8(scales[high])
                for byte in ti.static(range(4)):
                    multiply_add8(sums[2 * byte + high], nibbles_in_place(words, byte, high), scale)
        for high in ti.static(range(2)):
            y = [sums[2 * b + high] * NIBBLE_UNIT[2 * b + high] - offsets[high] for b in ti.static(range(4))]
            for m in ti.static(range(2)):
                partial[out + 2 * high + m] = f32x16(*[y[k & 3][4 * m + (k >> 2)] for k in ti.static(range(16))])

    @ti.func
    def gemv(
        quants: ti.template(), quants_base, tail: ti.template(), tail_base, headers: ti.template(), headers_base,
        quants_address, headers_address, cols, full_bands, tail_bands, x: ti.template(), x_base,
        active: ti.template(), active_base, count, partial: ti.template(), partial_base, worker,
    ):  # fmt: skip
        first = active_base + share_start(count, worker, workers)
        last = active_base + share_start(count, worker + 1, workers)
        out = partial_base + worker * (full_bands + tail_bands) * 16
        if full_bands > 0:
            for j in range(first, ti.min(first + PREFETCH_DISTANCE, last)):
                prefetch(quants_address, quants_base, headers_address, headers_base, active[j])
        for band in range(full_bands):
            full_band(
                quants, quants_base + band * cols * 2, headers, headers_base + band * cols,
                quants_address, headers_address,
                x, x_base, active, first, last, partial, out + band * 16, ti.select(band + 1 < full_bands, cols, 0),
            )  # fmt: skip
        if tail_bands > 0:
            tail_band(
                tail, tail_base, headers, headers_base + full_bands * cols,
                x, x_base, active, first, last, partial, out + full_bands * 16,
            )  # fmt: skip

    return gemv


class ZigzagGemv:
    """One matrix on the device with its GEMV as a kernel of its own, for tests and benchmarks.

    `data`: the stored zigzag bytes (u8, flat) of a matrix of `shape`. The token kernel uses the same func
    (`make_gemv`).
    """

    def __init__(self, data: np.ndarray, shape: ZigzagShape, workers: int = 2) -> None:
        self.shape, self.workers = shape, workers
        quants, tail, headers = split(data, shape)
        self._quants = _upload(quants, u32x16)
        self._tail = _upload(tail, u32x8)
        self._headers = _upload(headers, u32x4)
        self._x = ti.ndarray(f32x16, (vectors_for(shape.cols),))
        self._active = ti.ndarray(ti.i32, (shape.cols + 16,))
        self._partial = ti.ndarray(f32x16, (workers * shape.padded_rows // 16,))
        host_view(self._partial)[:] = 0
        self._kernel = make_gemv_kernel(workers)

    def __call__(self, x: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """y (f32 [rows]) for x (f32 [cols]); `active` (i32, any order, no duplicates) defaults to every column.

        Raises ValueError for sizes or columns that are not those of the matrix.
        """
        active = np.arange(self.shape.cols, dtype=np.int32) if active is None else active
        if x.shape != (self.shape.cols,) or active.size > self.shape.cols:
            raise ValueError(f"x {list(x.shape)}, active {list(active.shape)} do not fit {self.shape.cols} columns")
        if active.size and not 0 <= active.min() <= active.max() < self.shape.cols:
            raise ValueError(f"active columns must be between 0 and {self.shape.cols - 1}")
        view = host_view(self._x).reshape(-1)
        view[: x.size] = x
        host_view(self._active)[: active.size] = active
        self.run(active.size)
        parts = host_view(self._partial).reshape(self.workers, -1)
        y = parts[0].copy()
        for part in parts[1:]:
            y += part
        return y[: self.shape.rows]

    def run(self, count: int) -> None:
        """Launch on the x and active list that are already on the device and wait for the end."""
        shape = self.shape
        self._kernel(
            self._quants, self._tail, self._headers, address(self._quants), address(self._headers),
            shape.cols, shape.full_bands, shape.tail_bands,
            self._x, self._active, count, self._partial,
        )  # fmt: skip
        ti.sync()


def _upload(rows: np.ndarray, dtype) -> ti.Ndarray:
    array = ti.ndarray(dtype, (max(1, len(rows)),))
    host_view(array)[: len(rows)] = rows
    return array


@functools.cache
def make_gemv_kernel(workers: int):
    """The GEMV as a kernel of its own: one iteration per worker."""
    gemv = make_gemv(workers)

    @ti.kernel
    def zigzag_gemv(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4),
        quants_address: ti.i64, headers_address: ti.i64,
        cols: ti.i32, full_bands: ti.i32, tail_bands: ti.i32, x: array_of(f32x16),
        active: array_of(ti.i32), count: ti.i32, partial: array_of(f32x16),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            gemv(
                quants, 0, tail, 0, headers, 0, quants_address, headers_address, cols, full_bands, tail_bands, x, 0,
                active, 0, count, partial, 0, worker,
            )  # fmt: skip

    return zigzag_gemv
