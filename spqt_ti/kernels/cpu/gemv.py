"""Zigzag GEMV: y = W[:, active] x[active], for one token.

The active columns are split evenly over the workers. A worker goes through the panels of up to 32 bands (see
ZigzagShape), and in a panel through its share in tiles of columns: what a tile has in the panel is fetched column by
column, in the order of memory, while the tile before is computed band by band (see tile_sums), with a band's 256 sums
in registers. It writes its sums once; whoever needs y adds the workers' partial sums in worker order, so a result never
depends on timing.
"""

import functools
from dataclasses import replace

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.arguments import Inputs, Matrix, Panel, Sums
from spqt_ti.kernels.cpu.schemes import q4_k
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.tile_sums import (
    QUAD_BANDS,
    QUAD_VECTORS,
    SPARE_VECTORS,
    WORKSPACE_INTEGERS,
    make_add_tile,
)
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, i32x4, i64x4, u32x4, u32x8, u32x16, vectors_for
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.cpu.zigzag import panel_height, unpack
from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS, Planes, ZigzagShape

_RUN = 8  # superblocks whose addresses are planned at once
SCRATCH_VECTORS = -(-MOST_PANEL_BANDS // QUAD_BANDS) * QUAD_VECTORS + SPARE_VECTORS  # of a worker

# What is fetched next, as a list of variables: the superblock, superblocks left in its column, entry in the active
# list, first band and height of the panel; then what does not change.
(NEXT, LEFT, ENTRY, PANEL, HEIGHT, QUANTS, HEADERS, FIRST, LAST, COLS, FULL_BANDS, PANEL_BANDS, WORKSPACE) = range(13)


def preferred_panel_bands() -> int:
    """Bands side by side: without prefetching, the hardware has to see one band's columns in order."""
    return MOST_PANEL_BANDS if native.available("x86_64") else 1


def make_stream(planes: Planes):
    """Build the ti.funcs that fetch superblocks in the order of memory, ahead of their use: `schedule` writes the
    addresses of the next ones to the beginning of the workspace, `fetch` asks for what stands at one entry of it.

    Without it, skipping is slower than reading everything once weights exceed the cache: the hardware's prefetcher
    finds no pattern in the pieces. Planning is apart because its branches would cost the loop that multiplies its
    registers. After the last panel the last superblock is fetched again and again, which costs nothing.
    """
    helpers = native.load()
    prefetches = helpers is not None
    quant_bytes, header_bytes = planes.quant_vectors * 64, planes.header_vectors * 16

    @ti.func
    def next_column(active: ti.template(), ahead: ti.template()):
        if ahead[PANEL] < ahead[FULL_BANDS]:
            ahead[NEXT] = ahead[PANEL] * ahead[COLS] + active[ahead[ENTRY]] * ahead[HEIGHT]
            ahead[LEFT] = ahead[HEIGHT]
            ahead[ENTRY] += 1
            if ahead[ENTRY] == ahead[LAST]:
                ahead[ENTRY] = ahead[FIRST]
                ahead[PANEL] += ahead[HEIGHT]
                ahead[HEIGHT] = panel_height(ahead[PANEL_BANDS], ahead[FULL_BANDS] - ahead[PANEL])
        else:
            ahead[NEXT] -= 1
            ahead[LEFT] = 1

    @ti.func
    def schedule(active: ti.template(), ahead: ti.template(), count):
        if ti.static(prefetches):
            done = 0
            while done < count:
                if ahead[LEFT] == 0:
                    next_column(active, ahead)
                at = ahead[WORKSPACE] + (ti.cast(done, ti.i64) << 3)
                run = ahead[QUANTS] + ti.cast(ahead[NEXT], ti.i64) * quant_bytes
                step = ti.cast(quant_bytes, ti.i64)
                helpers.write_run(at, run, step)
                taken = ti.min(ti.min(ahead[LEFT], count - done), _RUN)
                header = ahead[HEADERS] + ti.cast(ahead[NEXT], ti.i64) * header_bytes
                helpers.prefetch64(header)
                for _ in ti.static(range(header_bytes // 16)):
                    header += ti.cast((taken - 1) << 4, ti.i64)
                    helpers.prefetch64(header)
                ahead[NEXT] += taken
                ahead[LEFT] -= taken
                done += taken

    @ti.func
    def fetch(entry):
        if ti.static(prefetches):
            at = entry
            if ti.static(quant_bytes == 64):
                first = ti.cast(0, ti.i64)
                helpers.prefetch_listed64(at, first)
            else:
                helpers.prefetch_listed128(at)
            for line in ti.static(range(2, quant_bytes // 64)):
                offset = ti.cast(64 * line, ti.i64)
                helpers.prefetch_listed64(at, offset)

    @ti.func
    def fetch_tail(active: ti.template(), low, high, words_address, headers_address):
        """Ask for what the columns low..high-1 of the active list have in the tail band, at these addresses."""
        if ti.static(prefetches):
            for j in range(low, high):
                words = words_address + (ti.cast(active[j], ti.i64) << 5)
                header = headers_address + (ti.cast(active[j], ti.i64) << 4)
                helpers.prefetch64(words)
                helpers.prefetch64(header)

    return schedule, fetch, fetch_tail


@ti.func
def tile_columns(height):
    """Columns of a tile. The next tile is fetched while one is computed: both have to fit L1 (48 KB: 8 columns of 16
    bands are 18 KB), and a tile has to be more than memory brings in its latency (3 KB of 30 GB/s in 100 ns). The
    first is fetched before anything is computed.
    """
    return ti.select(height > 2, 8, 12)


def _make_full_bands(exact: bool, decoder: Decoder):
    """Build the ti.func that computes the rows of the full bands for a part of the active list."""
    schedule, fetch, fetch_tail = make_stream(decoder.planes)
    add_tile, write_rows = make_add_tile(fetch, exact, decoder)
    quant_vectors, header_vectors = decoder.planes.quant_vectors, decoder.planes.header_vectors
    has_tail = decoder.make_tail_band is not None  # asked in an `if` of its own: Taichi compiles both sides of `and`

    @ti.func
    def full_bands_of(m: ti.template(), inputs: ti.template(), first, last, sums: ti.template(), out, workspace):
        """Rows of the full bands, at a[out], for the entries first..last-1 of the active list."""
        ahead = [
            0, 0, first, 0, panel_height(m.panel_bands, m.full_bands),
            m.quants_address + (ti.cast(m.quants_base, ti.i64) << 6),
            m.headers_address + (ti.cast(m.headers_base, ti.i64) << 4), first, last, m.cols, m.full_bands,
            m.panel_bands, workspace,
        ]  # fmt: skip
        spare = sums.scratch + MOST_PANEL_BANDS // QUAD_BANDS * QUAD_VECTORS
        columns = tile_columns(ahead[HEIGHT])
        for _ in range((ahead[HEIGHT] + QUAD_BANDS - 1) // QUAD_BANDS):
            count = ti.min(columns, last - first) * ti.min(QUAD_BANDS, ahead[HEIGHT])
            schedule(inputs.active, ahead, count)
            for i in range(count):
                fetch(workspace + (ti.cast(i, ti.i64) << 3))
        start = 0
        while start < m.full_bands:
            height = panel_height(m.panel_bands, m.full_bands - start)
            quants_from = m.quants_base + start * m.cols * quant_vectors
            headers_from = m.headers_base + start * m.cols * header_vectors
            quads = (height + QUAD_BANDS - 1) // QUAD_BANDS
            for i in range(quads * QUAD_VECTORS):
                sums.a[sums.scratch + i] = f32x16(0.0)
            for tile in range((last - first + columns - 1) // columns):
                low = first + tile * columns
                high = ti.min(low + columns, last)
                if ti.static(has_tail):  # noqa: SIM102
                    if m.tail_bands > 0 and start + height == m.full_bands:
                        headers_base = m.headers_base + m.full_bands * m.cols
                        tail_headers = m.headers_address + (ti.cast(headers_base, ti.i64) << 4)
                        tail_words = m.tail_address + (ti.cast(m.tail_base, ti.i64) << 5)
                        fetch_tail(inputs.active, low, high, tail_words, tail_headers)
                for quad in range(quads):
                    bands = ti.min(QUAD_BANDS, height - quad * QUAD_BANDS)
                    schedule(inputs.active, ahead, (high - low) * bands)
                    quad_sums = sums.scratch + quad * QUAD_VECTORS
                    add_tile(
                        ti.static(
                            Panel(
                                m.quants, quants_from, m.headers, headers_from, m.quants_address, m.headers_address,
                                height,
                            )
                        ),
                        quad * QUAD_BANDS, bands, inputs, low, high, ti.static(Sums(sums.a, quad_sums, spare)),
                        workspace,
                    )  # fmt: skip
            for band in range(height):
                band_sums = sums.scratch + band // QUAD_BANDS * QUAD_VECTORS
                write_rows(sums.a, band_sums, band % QUAD_BANDS, out + (start + band) * 16)
            start += height

    return full_bands_of


def make_gemv(workers: int, exact: bool = False, decoder: Decoder = q4_k.DECODER):
    """Build the ti.func that computes one worker's part of y = W x. Shapes are run-time arguments: one body serves
    every matrix of the decoder's scheme. `exact`: in f32 on every CPU (see tile_sums).

    Arguments: a Matrix; its Inputs, of which the worker takes a share; Sums, the first vectors of the partial sums and
    of the worker's SCRATCH_VECTORS; the address of the worker's workspace (see tile_sums); the worker. Worker w writes
    the whole bands of partial sums (16 vectors each) that start at vector `sums + w * bands * 16`.
    """
    full_bands_of = _make_full_bands(exact, decoder)
    tail_band = decoder.make_tail_band(exact) if decoder.make_tail_band is not None else None
    has_tail = tail_band is not None

    @ti.func
    def gemv(m: ti.template(), inputs: ti.template(), sums: ti.template(), workspace, worker):
        first = inputs.first + share_start(inputs.count, worker, workers)
        last = inputs.first + share_start(inputs.count, worker + 1, workers)
        out = sums.sums + worker * (m.full_bands + m.tail_bands) * 16
        full_bands_of(m, inputs, first, last, sums, out, workspace)
        if ti.static(has_tail):  # noqa: SIM102
            if m.tail_bands > 0:
                tail_band(m, inputs, first, last, sums.a, out + m.full_bands * 16, sums.scratch)  # type: ignore[misc]

    return gemv


def make_gemv_by_bands(workers: int, exact: bool = False, decoder: Decoder = q4_k.DECODER):
    """Build the ti.func of one worker's rows of y = W x, of a matrix without tail band: the workers share the panels,
    and every one goes through all inputs. So y is whole, at vector `sums` of the Sums.

    Arguments as for `make_gemv`.
    """
    full_bands_of = _make_full_bands(exact, decoder)
    quant_vectors, header_vectors = decoder.planes.quant_vectors, decoder.planes.header_vectors

    @ti.func
    def gemv(m: ti.template(), inputs: ti.template(), sums: ti.template(), workspace, worker):
        panels = (m.full_bands + m.panel_bands - 1) // m.panel_bands
        first = share_start(panels, worker, workers) * m.panel_bands
        bands = ti.min(share_start(panels, worker + 1, workers) * m.panel_bands, m.full_bands) - first
        quants_base = m.quants_base + first * m.cols * quant_vectors
        headers_base = m.headers_base + first * m.cols * header_vectors
        if bands > 0:
            part = ti.static(
                Matrix(
                    m.quants, quants_base, m.tail, 0, m.headers, headers_base, m.quants_address, m.tail_address,
                    m.headers_address, m.cols, bands, 0, m.panel_bands,
                )
            )  # fmt: skip
            out = sums.sums + first * 16
            full_bands_of(part, inputs, inputs.first, inputs.first + inputs.count, sums, out, workspace)

    return gemv


class ZigzagMatrix:
    """One matrix on the device with what its GEMVs need: inputs, partial sums, scratch.

    `data`: the stored zigzag bytes (u8, flat) of a matrix of `shape` (its planes become the decoder's); `exact`: see
    `make_gemv`. Raises QuantizationError where the number of bytes is not the shape's.
    """

    def __init__(
        self, data: np.ndarray, shape: ZigzagShape, workers: int = 2, exact: bool = False,
        decoder: Decoder = q4_k.DECODER,
    ) -> None:  # fmt: skip
        shape = replace(shape, planes=decoder.planes)
        self.shape, self.workers, self.exact = shape, workers, exact
        quants, tail, headers = unpack(data, shape, decoder)
        self._quants = _upload(quants, u32x16)
        self._tail = _upload(tail, u32x8)
        self._headers = _upload(headers, u32x4, QUAD_BANDS - 1)  # headers are read four at a time
        self._x = ndarray(f32x16, (vectors_for(shape.cols),))
        self._partial_vectors = workers * shape.padded_rows // 16
        self._scratch = ndarray(f32x16, (self._partial_vectors + workers * SCRATCH_VECTORS,))

    @property
    def arrays(self) -> tuple[ti.Ndarray, ...]:
        """Quants, tail and headers."""
        return self._quants, self._tail, self._headers

    def numbers(self, lists: int) -> tuple[list[int], list[int]]:
        """ADDRESSES (`lists`: of the active list) and GEOMETRY, as a kernel of its own takes them."""
        shape = self.shape
        geometry = [shape.cols, shape.full_bands, shape.tail_bands, shape.panel_bands]
        return [*map(address, self.arrays), lists], geometry

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

    def __init__(
        self, data: np.ndarray, shape: ZigzagShape, workers: int = 2, exact: bool = False,
        decoder: Decoder = q4_k.DECODER,
    ) -> None:  # fmt: skip
        super().__init__(data, shape, workers, exact, decoder)
        self._active = ndarray(ti.i32, (vectors_for(shape.cols) * 16 + workers * WORKSPACE_INTEGERS,))
        self._kernel = make_gemv_kernel(workers, exact, decoder)

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
        lists = address(self._active)
        self._kernel(*self.arrays, self._x, self._active, self._scratch, *self.numbers(lists), count)
        ti.sync()


def _upload(rows: np.ndarray, dtype, spare: int = 0) -> ti.Ndarray:
    array = ndarray(dtype, (max(1, len(rows) + spare),))
    host_view(array)[: len(rows)] = rows
    return array


@functools.cache
def make_gemv_kernel(workers: int, exact: bool = False, decoder: Decoder = q4_k.DECODER):
    """The GEMV as a kernel of its own: one iteration per worker."""
    gemv = make_gemv(workers, exact, decoder)

    @ti.kernel
    def zigzag_gemv(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), x: array_of(f32x16),
        active: array_of(ti.i32), a: array_of(f32x16), addresses: i64x4, geometry: i32x4, count: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            quants_address, tail_address, headers_address = addresses[0], addresses[1], addresses[2]
            cols, full_bands, tail_bands, panel_bands = geometry[0], geometry[1], geometry[2], geometry[3]
            columns = count
            workspace = addresses[3] + ti.cast(((cols + 15) // 16 * 16 + worker * WORKSPACE_INTEGERS) * 4, ti.i64)
            scratch = workers * (full_bands + tail_bands) * 16 + worker * SCRATCH_VECTORS
            matrix = ti.static(
                Matrix(
                    quants, 0, tail, 0, headers, 0, quants_address, tail_address, headers_address, cols, full_bands,
                    tail_bands, panel_bands,
                )
            )  # fmt: skip
            gemv(matrix, ti.static(Inputs(x, 0, active, 0, columns)), ti.static(Sums(a, 0, scratch)), workspace, worker)

    return zigzag_gemv
