"""Zigzag GEMV that skips on the fly (B2 of the paper), to compare the full one with: y = W x over |x| > threshold.

Columns, not active columns, are split evenly over the workers, and a worker finds out which of the next BLOCK_COLUMNS
are active when it comes to them: no list is collected before, nothing is fetched ahead of a block, and a worker whose
columns are more active than others' works longer.
"""

import functools

import numpy as np

from spqt_ti.backend import address, ndarray, ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.block_sums import BLOCK_COLUMNS, GROUP_BANDS, GROUP_VECTORS, WORKSPACE_INTEGERS, make_add_block
from spqt_ti.kernels.cpu.gemv import SCRATCH_VECTORS, ZigzagMatrix
from spqt_ti.kernels.cpu.tail_band import make_tail_band
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, u32x4, u32x8, u32x16, value, vectors_for
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import panel_height
from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS, ZigzagShape


def make_skipping_gemv(workers: int, exact: bool = False):
    """Build the ti.func of one worker's part. Arguments as for `make_gemv`, with the threshold instead of the active
    list, and integer scratch `chosen` of cols + 1 entries per worker from `chosen_base`, before the workspace.
    """
    helpers = native.load()
    prefetches = helpers is not None

    @ti.func
    def no_fetch(place):
        pass

    add_block, write_rows = make_add_block(no_fetch, exact)
    tail_band = make_tail_band(exact)

    @ti.func
    def choose(x: ti.template(), x_base, threshold, low, high, chosen: ti.template(), at):
        """Write the active columns of low..high-1 to chosen[at...]; returns their number."""
        count = 0
        for column in range(low, high):
            xj = value(x, x_base * 16 + column)
            chosen[at + count] = column
            count += ti.select(ti.max(xj, 0.0 - xj) > threshold, 1, 0)
        return count

    @ti.func
    def gemv(
        quants: ti.template(), quants_base, tail: ti.template(), tail_base, headers: ti.template(), headers_base,
        quants_address, headers_address, cols, full_bands, tail_bands, panel_bands, x: ti.template(), x_base, threshold,
        chosen: ti.template(), chosen_base, workspace, a: ti.template(), partial_base, scratch, worker,
    ):  # fmt: skip
        first = share_start(cols, worker, workers)
        last = share_start(cols, worker + 1, workers)
        out = partial_base + worker * (full_bands + tail_bands) * 16
        spare = scratch + MOST_PANEL_BANDS // GROUP_BANDS * GROUP_VECTORS
        start = 0
        while start < full_bands:
            height = panel_height(panel_bands, full_bands - start)
            groups = (height + GROUP_BANDS - 1) // GROUP_BANDS
            for i in range(groups * GROUP_VECTORS):
                a[scratch + i] = f32x16(0.0)
            for block in range((last - first + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS):
                low = first + block * BLOCK_COLUMNS
                count = choose(x, x_base, threshold, low, ti.min(low + BLOCK_COLUMNS, last), chosen, chosen_base)
                if ti.static(prefetches):
                    for i in range(count * height):
                        superblock = start * cols + chosen[chosen_base + i // height] * height + i % height
                        at = quants_address + (ti.cast(quants_base // 2 + superblock, ti.i64) << 7)
                        helpers.prefetch128(at)
                if count > 0:
                    for group in range(groups):
                        add_block(
                            quants, quants_base + start * cols * 2, headers, headers_base + start * cols,
                            quants_address, headers_address, height, group * GROUP_BANDS,
                            ti.min(GROUP_BANDS, height - group * GROUP_BANDS),
                            x, x_base, chosen, chosen_base, chosen_base + count,
                            a, scratch + group * GROUP_VECTORS, spare, workspace,
                        )  # fmt: skip
            for band in range(height):
                sums = scratch + band // GROUP_BANDS * GROUP_VECTORS
                write_rows(a, sums, band % GROUP_BANDS, out + (start + band) * 16)
            start += height
        if tail_bands > 0:
            count = choose(x, x_base, threshold, first, last, chosen, chosen_base)
            tail_band(
                tail, tail_base, headers, headers_base + full_bands * cols,
                x, x_base, chosen, chosen_base, chosen_base + count, a, out + full_bands * 16, scratch,
            )  # fmt: skip

    return gemv


class SkippingGemv(ZigzagMatrix):
    """A matrix with B2 as a kernel of its own, for tests and benchmarks."""

    def __init__(self, data: np.ndarray, shape: ZigzagShape, workers: int = 2, exact: bool = False) -> None:
        super().__init__(data, shape, workers, exact)
        self._chosen = ndarray(ti.i32, (workers * (vectors_for(shape.cols + 1) * 16 + WORKSPACE_INTEGERS),))
        self._kernel = make_skipping_kernel(workers, exact)

    def __call__(self, x: np.ndarray, threshold: float = 0.0) -> np.ndarray:
        """y (f32 [rows]) of the inputs |x_i| > threshold, for x (f32 [cols]). Raises ValueError for another size."""
        self.load_x(x)
        self.run(threshold)
        return self.y()

    def run(self, threshold: float) -> None:
        """Launch on the x that is on the device and wait for the end."""
        shape = self.shape
        self._kernel(
            self._quants, self._tail, self._headers, address(self._quants), address(self._headers),
            shape.cols, shape.full_bands, shape.tail_bands, shape.panel_bands,
            self._x, threshold, self._chosen, address(self._chosen), self._scratch,
        )  # fmt: skip
        ti.sync()


@functools.cache
def make_skipping_kernel(workers: int, exact: bool = False):
    """The GEMV as a kernel of its own: one iteration per worker."""
    gemv = make_skipping_gemv(workers, exact)

    @ti.kernel
    def skipping_gemv(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), quants_address: ti.i64,
        headers_address: ti.i64, cols: ti.i32, full_bands: ti.i32, tail_bands: ti.i32, panel_bands: ti.i32,
        x: array_of(f32x16), threshold: ti.f32, chosen: array_of(ti.i32), chosen_address: ti.i64, a: array_of(f32x16),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            workspace = (cols + 16) // 16 * 16  # after the list
            chosen_base = worker * (workspace + WORKSPACE_INTEGERS)
            gemv(
                quants, 0, tail, 0, headers, 0, quants_address, headers_address, cols, full_bands, tail_bands,
                panel_bands, x, 0, threshold, chosen, chosen_base,
                chosen_address + (ti.cast(chosen_base + workspace, ti.i64) << 2),
                a, 0, workers * (full_bands + tail_bands) * 16 + worker * SCRATCH_VECTORS, worker,
            )  # fmt: skip

    return skipping_gemv
