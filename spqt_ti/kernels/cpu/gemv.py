"""Zigzag GEMV: y = W[:, active] x[active], for one token.

The active columns are split evenly over the workers. A worker goes through the panels of up to 32 bands (see
ZigzagShape), and in a panel through its share in blocks of columns: what a block has in the panel is fetched column by
column, in the order of memory, while the block before is computed band by band (see block_sums), with a band's 256 sums
in registers. It writes its sums once; whoever needs y adds the workers' partial sums in worker order, so a result never
depends on timing.
"""

import functools

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.block_sums import (
    BLOCK_COLUMNS,
    GROUP_BANDS,
    GROUP_VECTORS,
    SPARE_VECTORS,
    WORKSPACE_INTEGERS,
    make_add_block,
)
from spqt_ti.kernels.cpu.tail_band import make_tail_band
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, u32x4, u32x8, u32x16, vectors_for
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import panel_height, split
from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS, ZigzagShape

_RUN = 8  # superblocks whose addresses are planned at once
SCRATCH_VECTORS = -(-MOST_PANEL_BANDS // GROUP_BANDS) * GROUP_VECTORS + SPARE_VECTORS  # of a worker

# What is fetched next, as a list of variables: the superblock, superblocks left in its column, place in the active
# list, first band and height of the panel; then what does not change.
(NEXT, LEFT, PLACE, PANEL, HEIGHT, QUANTS, HEADERS, FIRST, LAST, COLS, FULL_BANDS, PANEL_BANDS, WORKSPACE) = range(13)


def preferred_panel_bands() -> int:
    """Bands side by side: without prefetching, the hardware has to see one band's columns in order."""
    return MOST_PANEL_BANDS if native.load() is not None else 1


def make_stream():
    """Build the ti.funcs that fetch superblocks into L2 in the order of memory, ahead of their use: `plan` writes the
    addresses of the next ones to the beginning of the workspace, `fetch` asks for what stands at one place of it.

    Without it, skipping is slower than reading everything once weights exceed the cache: the hardware's prefetcher
    finds no pattern in the pieces. Planning is apart because its branches would cost the loop that multiplies its
    registers. After the last panel the last superblock is fetched again and again, which costs nothing.
    """
    helpers = native.load()
    prefetches = helpers is not None

    @ti.func
    def next_column(active: ti.template(), ahead: ti.template()):
        if ahead[PANEL] < ahead[FULL_BANDS]:
            ahead[NEXT] = ahead[PANEL] * ahead[COLS] + active[ahead[PLACE]] * ahead[HEIGHT]
            ahead[LEFT] = ahead[HEIGHT]
            ahead[PLACE] += 1
            if ahead[PLACE] == ahead[LAST]:
                ahead[PLACE] = ahead[FIRST]
                ahead[PANEL] += ahead[HEIGHT]
                ahead[HEIGHT] = panel_height(ahead[PANEL_BANDS], ahead[FULL_BANDS] - ahead[PANEL])
        else:
            ahead[NEXT] -= 1
            ahead[LEFT] = 1

    @ti.func
    def plan(active: ti.template(), ahead: ti.template(), count):
        if ti.static(prefetches):
            done = 0
            while done < count:
                if ahead[LEFT] == 0:
                    next_column(active, ahead)
                at = ahead[WORKSPACE] + (ti.cast(done, ti.i64) << 3)
                run = ahead[QUANTS] + (ti.cast(ahead[NEXT], ti.i64) << 7)
                helpers.write_run(at, run)
                taken = ti.min(ti.min(ahead[LEFT], count - done), _RUN)
                header = ahead[HEADERS] + (ti.cast(ahead[NEXT], ti.i64) << 4)
                helpers.prefetch64(header)
                header += ti.cast((taken - 1) << 4, ti.i64)
                helpers.prefetch64(header)
                ahead[NEXT] += taken
                ahead[LEFT] -= taken
                done += taken

    @ti.func
    def fetch(place):
        if ti.static(prefetches):
            at = place
            helpers.prefetch_listed128(at)

    @ti.func
    def fetch_tail(active: ti.template(), low, high, words_address, headers_address):
        """Ask for what the columns low..high-1 of the active list have in the tail band, at these addresses."""
        if ti.static(prefetches):
            for j in range(low, high):
                words = words_address + (ti.cast(active[j], ti.i64) << 5)
                header = headers_address + (ti.cast(active[j], ti.i64) << 4)
                helpers.prefetch64(words)
                helpers.prefetch64(header)

    return plan, fetch, fetch_tail


@ti.func
def block_columns(count, dense):
    """Columns of a block. The first is fetched before anything is computed, and the last is computed when everything
    has been fetched, so short lists are cut smaller. So are dense products, beside whose blocks L2 also holds what
    the hardware has fetched ahead.
    """
    shorter = ti.select(count < 192, 16, 32)
    return ti.select(count < 1024 or dense, shorter, BLOCK_COLUMNS)


def make_gemv(workers: int, exact: bool = False):
    """Build the ti.func that computes one worker's part of y = W x. Shapes are run-time arguments: one body serves
    every matrix. `exact`: in f32 on every CPU (see block_sums).

    Arguments: the weight arrays quants, tail and headers with the first vector of the matrix in each, the addresses
    of these arrays, and the matrix's geometry (see ZigzagShape); x with its first vector; the active
    list with its first entry and its length; the address of the worker's workspace (see block_sums); scratch `a`, with
    the first vector of the partial sums and of the worker's SCRATCH_VECTORS in it; the worker. Worker w writes the
    whole bands of partial sums (16 vectors each) that start at vector `partial_base + w * bands * 16`.
    """
    plan, fetch, fetch_tail = make_stream()
    add_block, write_rows = make_add_block(fetch, exact)
    tail_band = make_tail_band(exact)

    @ti.func
    def full_bands_of(
        quants: ti.template(), quants_base, headers: ti.template(), headers_base, quants_address, headers_address,
        tail_address, cols, full_bands, tail_bands, panel_bands, x: ti.template(), x_base, active: ti.template(),
        first, last, dense, workspace, a: ti.template(), out, scratch,
    ):  # fmt: skip
        ahead = [
            0, 0, first, 0, panel_height(panel_bands, full_bands), quants_address + (ti.cast(quants_base, ti.i64) << 6),
            headers_address + (ti.cast(headers_base, ti.i64) << 4), first, last, cols, full_bands, panel_bands,
            workspace,
        ]  # fmt: skip
        spare = scratch + MOST_PANEL_BANDS // GROUP_BANDS * GROUP_VECTORS
        columns = block_columns(last - first, dense)
        for _ in range((ahead[HEIGHT] + GROUP_BANDS - 1) // GROUP_BANDS):
            count = ti.min(columns, last - first) * ti.min(GROUP_BANDS, ahead[HEIGHT])
            plan(active, ahead, count)
            for i in range(count):
                fetch(workspace + (ti.cast(i, ti.i64) << 3))
        start = 0
        while start < full_bands:
            height = panel_height(panel_bands, full_bands - start)
            groups = (height + GROUP_BANDS - 1) // GROUP_BANDS
            for i in range(groups * GROUP_VECTORS):
                a[scratch + i] = f32x16(0.0)
            for block in range((last - first + columns - 1) // columns):
                low = first + block * columns
                high = ti.min(low + columns, last)
                if tail_bands > 0 and start + height == full_bands:
                    tail_headers = headers_address + (ti.cast(headers_base + full_bands * cols, ti.i64) << 4)
                    fetch_tail(active, low, high, tail_address, tail_headers)
                for group in range(groups):
                    bands = ti.min(GROUP_BANDS, height - group * GROUP_BANDS)
                    plan(active, ahead, (high - low) * bands)
                    add_block(
                        quants, quants_base + start * cols * 2, headers, headers_base + start * cols,
                        quants_address, headers_address, height, group * GROUP_BANDS, bands, x, x_base,
                        active, low, high, a, scratch + group * GROUP_VECTORS, spare, workspace,
                    )  # fmt: skip
            for band in range(height):
                sums = scratch + band // GROUP_BANDS * GROUP_VECTORS
                write_rows(a, sums, band % GROUP_BANDS, out + (start + band) * 16)
            start += height

    @ti.func
    def gemv(
        quants: ti.template(), quants_base, tail: ti.template(), tail_base, headers: ti.template(), headers_base,
        quants_address, tail_address, headers_address, cols, full_bands, tail_bands, panel_bands,
        x: ti.template(), x_base, active: ti.template(), active_base, count, workspace,
        a: ti.template(), partial_base, scratch, worker,
    ):  # fmt: skip
        first = active_base + share_start(count, worker, workers)
        last = active_base + share_start(count, worker + 1, workers)
        out = partial_base + worker * (full_bands + tail_bands) * 16
        full_bands_of(
            quants, quants_base, headers, headers_base, quants_address, headers_address,
            tail_address + (ti.cast(tail_base, ti.i64) << 5), cols, full_bands, tail_bands, panel_bands,
            x, x_base, active, first, last, count == cols, workspace, a, out, scratch,
        )  # fmt: skip
        if tail_bands > 0:
            tail_band(
                tail, tail_base, headers, headers_base + full_bands * cols,
                x, x_base, active, first, last, a, out + full_bands * 16, scratch,
            )  # fmt: skip

    return gemv


class ZigzagMatrix:
    """One matrix on the device with what its GEMVs need: inputs, partial sums, scratch.

    `data`: the stored zigzag bytes (u8, flat) of a matrix of `shape`; `exact`: see `make_gemv`.
    """

    def __init__(self, data: np.ndarray, shape: ZigzagShape, workers: int = 2, exact: bool = False) -> None:
        self.shape, self.workers, self.exact = shape, workers, exact
        quants, tail, headers = split(data, shape)
        self._quants = _upload(quants, u32x16)
        self._tail = _upload(tail, u32x8)
        self._headers = _upload(headers, u32x4, GROUP_BANDS - 1)  # headers are read four at a time
        self._x = ndarray(f32x16, (vectors_for(shape.cols),))
        self._partial_vectors = workers * shape.padded_rows // 16
        self._scratch = ndarray(f32x16, (self._partial_vectors + workers * SCRATCH_VECTORS,))

    def load_x(self, x: np.ndarray) -> None:
        """Put x (f32 [cols]) on the device. Raises ValueError for another size."""
        if x.shape != (self.shape.cols,):
            raise ValueError(f"x {list(x.shape)} does not fit {self.shape.cols} columns")
        host_view(self._x).reshape(-1)[: x.size] = x

    def y(self) -> np.ndarray:
        """f32 [rows]: the workers' partial sums in worker order."""
        parts = host_view(self._scratch)[: self._partial_vectors].reshape(self.workers, -1)
        y = parts[0].copy()
        for part in parts[1:]:
            y += part
        return y[: self.shape.rows]


class ZigzagGemv(ZigzagMatrix):
    """A matrix with its GEMV as a kernel of its own, for tests and benchmarks. The token kernel uses the same func."""

    def __init__(self, data: np.ndarray, shape: ZigzagShape, workers: int = 2, exact: bool = False) -> None:
        super().__init__(data, shape, workers, exact)
        self._active = ndarray(ti.i32, (vectors_for(shape.cols) * 16 + workers * WORKSPACE_INTEGERS,))
        self._kernel = make_gemv_kernel(workers, exact)

    def __call__(self, x: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """y (f32 [rows]) for x (f32 [cols]); `active` (i32, any order, no duplicates) defaults to every column.

        Raises ValueError for sizes or columns that are not those of the matrix.
        """
        active = np.arange(self.shape.cols, dtype=np.int32) if active is None else active
        if active.size > self.shape.cols:
            raise ValueError(f"{active.size} active columns, the matrix has {self.shape.cols}")
        if active.size and not 0 <= active.min() <= active.max() < self.shape.cols:
            raise ValueError(f"active columns must be between 0 and {self.shape.cols - 1}")
        self.load_x(x)
        host_view(self._active)[: active.size] = active
        self.run(active.size)
        return self.y()

    def run(self, count: int) -> None:
        """Launch on the x and active list that are already on the device and wait for the end."""
        shape = self.shape
        self._kernel(
            self._quants, self._tail, self._headers, address(self._quants), address(self._tail),
            address(self._headers),
            shape.cols, shape.full_bands, shape.tail_bands, shape.panel_bands,
            self._x, self._active, address(self._active), count, self._scratch,
        )  # fmt: skip
        ti.sync()


def _upload(rows: np.ndarray, dtype, spare: int = 0) -> ti.Ndarray:
    array = ndarray(dtype, (max(1, len(rows) + spare),))
    host_view(array)[: len(rows)] = rows
    return array


@functools.cache
def make_gemv_kernel(workers: int, exact: bool = False):
    """The GEMV as a kernel of its own: one iteration per worker."""
    gemv = make_gemv(workers, exact)

    @ti.kernel
    def zigzag_gemv(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4),
        quants_address: ti.i64, tail_address: ti.i64, headers_address: ti.i64,
        cols: ti.i32, full_bands: ti.i32, tail_bands: ti.i32, panel_bands: ti.i32, x: array_of(f32x16),
        active: array_of(ti.i32), active_address: ti.i64, count: ti.i32, a: array_of(f32x16),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            gemv(
                quants, 0, tail, 0, headers, 0, quants_address, tail_address, headers_address,
                cols, full_bands, tail_bands, panel_bands, x, 0, active, 0, count,
                active_address + ti.cast(((cols + 15) // 16 * 16 + worker * WORKSPACE_INTEGERS) * 4, ti.i64),
                a, 0, workers * (full_bands + tail_bands) * 16 + worker * SCRATCH_VECTORS, worker,
            )  # fmt: skip

    return zigzag_gemv
