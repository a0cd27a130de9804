"""Zigzag GEMV that skips on the fly (B2 of the paper), to compare the full one with: y = W x over |x| > threshold.

Columns, not active columns, are split evenly over the workers, and a worker finds out which of the next TILE_COLUMNS
are active when it comes to them: no list is collected before, nothing is fetched ahead of a tile, and a worker whose
columns are more active than others' works longer.
"""

import functools

import numpy as np

from spqt_ti.backend import address, ndarray, ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.arguments import Inputs, Matrix, Panel, Sums
from spqt_ti.kernels.cpu.gemv import SCRATCH_VECTORS, ZigzagMatrix
from spqt_ti.kernels.cpu.schemes import q4_k
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS, QUAD_VECTORS, TILE_COLUMNS, WORKSPACE_INTEGERS, make_add_tile
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, i32x4, i64x4, u32x4, u32x8, u32x16, value, vectors_for
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import panel_height
from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS, ZigzagShape


def make_skipping_gemv(workers: int, exact: bool = False):
    """Build the ti.func of one worker's part. Arguments as for `make_gemv`, with the threshold before the Sums; the
    active list of the Inputs is scratch of cols + 1 entries per worker, before the workspace.
    """
    helpers = native.load()
    prefetches = helpers is not None

    @ti.func
    def no_fetch(entry):
        pass

    add_tile, write_rows = make_add_tile(no_fetch, exact, q4_k.DECODER)
    tail_band = q4_k.make_tail_band(exact)

    @ti.func
    def choose(inputs: ti.template(), threshold, low, high):
        """Write the active columns of low..high-1 to the list; returns their number."""
        count = 0
        for column in range(low, high):
            xj = value(inputs.x, inputs.x_base * 16 + column)
            inputs.active[inputs.first + count] = column
            count += ti.select(ti.max(xj, 0.0 - xj) > threshold, 1, 0)
        return count

    @ti.func
    def gemv(m: ti.template(), inputs: ti.template(), threshold, sums: ti.template(), workspace, worker):
        first = share_start(m.cols, worker, workers)
        last = share_start(m.cols, worker + 1, workers)
        out = sums.sums + worker * (m.full_bands + m.tail_bands) * 16
        spare = sums.scratch + MOST_PANEL_BANDS // QUAD_BANDS * QUAD_VECTORS
        start = 0
        while start < m.full_bands:
            height = panel_height(m.panel_bands, m.full_bands - start)
            quants_from = m.quants_base + start * m.cols * 2
            headers_from = m.headers_base + start * m.cols
            quads = (height + QUAD_BANDS - 1) // QUAD_BANDS
            for i in range(quads * QUAD_VECTORS):
                sums.a[sums.scratch + i] = f32x16(0.0)
            for tile in range((last - first + TILE_COLUMNS - 1) // TILE_COLUMNS):
                low = first + tile * TILE_COLUMNS
                count = choose(inputs, threshold, low, ti.min(low + TILE_COLUMNS, last))
                if ti.static(prefetches):
                    for i in range(count * height):
                        superblock = start * m.cols + inputs.active[inputs.first + i // height] * height + i % height
                        at = m.quants_address + (ti.cast(m.quants_base // 2 + superblock, ti.i64) << 7)
                        helpers.prefetch128(at)
                if count > 0:
                    for quad in range(quads):
                        quad_sums = sums.scratch + quad * QUAD_VECTORS
                        add_tile(
                            ti.static(
                                Panel(
                                    m.quants, quants_from, m.headers, headers_from, m.quants_address,
                                    m.headers_address, height,
                                )
                            ),
                            quad * QUAD_BANDS, ti.min(QUAD_BANDS, height - quad * QUAD_BANDS), inputs,
                            inputs.first, inputs.first + count, ti.static(Sums(sums.a, quad_sums, spare)), workspace,
                        )  # fmt: skip
            for band in range(height):
                band_sums = sums.scratch + band // QUAD_BANDS * QUAD_VECTORS
                write_rows(sums.a, band_sums, band % QUAD_BANDS, out + (start + band) * 16)
            start += height
        if m.tail_bands > 0:
            count = choose(inputs, threshold, first, last)
            tail_band(
                m, inputs, inputs.first, inputs.first + count, sums.a, out + m.full_bands * 16, sums.scratch
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
        numbers = self.numbers(address(self._chosen))
        self._kernel(*self.arrays, self._x, self._chosen, self._scratch, *numbers, threshold)
        ti.sync()


@functools.cache
def make_skipping_kernel(workers: int, exact: bool = False):
    """The GEMV as a kernel of its own: one iteration per worker."""
    gemv = make_skipping_gemv(workers, exact)

    @ti.kernel
    def skipping_gemv(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), x: array_of(f32x16),
        chosen: array_of(ti.i32), a: array_of(f32x16), addresses: i64x4, geometry: i32x4, threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            quants_address, tail_address, headers_address = addresses[0], addresses[1], addresses[2]
            cols, full_bands, tail_bands, panel_bands = geometry[0], geometry[1], geometry[2], geometry[3]
            length = (cols + 16) // 16 * 16  # of a list; the workspace is behind it
            list_start = worker * (length + WORKSPACE_INTEGERS)
            scratch = workers * (full_bands + tail_bands) * 16 + worker * SCRATCH_VECTORS
            matrix = ti.static(
                Matrix(
                    quants, 0, tail, 0, headers, 0, quants_address, tail_address, headers_address, cols, full_bands,
                    tail_bands, panel_bands,
                )
            )  # fmt: skip
            gemv(
                matrix, ti.static(Inputs(x, 0, chosen, list_start, 0)), threshold, ti.static(Sums(a, 0, scratch)),
                addresses[3] + (ti.cast(list_start + length, ti.i64) << 2), worker,
            )  # fmt: skip

    return skipping_gemv
