"""Copies of a matrix, and launches that take a GEMV once through all of them; or many times through one that stays in
the cache.
"""

import functools
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, start, ti
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.cpu import row_gemv, row_layout, zigzag
from spqt_ti.kernels.cpu.arguments import Inputs, Matrix, Sums
from spqt_ti.kernels.cpu.collect import make_collect
from spqt_ti.kernels.cpu.gemv import SCRATCH_VECTORS, make_gemv, preferred_panel_bands
from spqt_ti.kernels.cpu.schemes import q4_k as q4_k_decoder
from spqt_ti.kernels.cpu.schemes.decoder import Decoder
from spqt_ti.kernels.cpu.skipping_gemv import make_skipping_gemv
from spqt_ti.kernels.cpu.tile_sums import QUAD_BANDS, WORKSPACE_INTEGERS
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, i32x4, i64x2, i64x4, u32x4, u32x8, u32x16, vectors_for
from spqt_ti.kernels.cpu.workers import make_wait_for_all

# All copies of a matrix together: 35 % of them are still five times the last-level cache of the README's machine. With
# 128 MiB a fifth of what sparse products read came from it.
COLD_BYTES = 512 << 20
WARM_BYTES = 1 << 30  # that a launch reads of a matrix that stays in the cache: launching takes 0.1 to 0.2 ms
POOL = 251  # different superblocks of a matrix, a prime number
COLLECTIONS = 1000  # in a launch
COPIES, TURNS, STRIDE, ARRIVALS = range(4)  # of Zigzag.rounds: STRIDE between lists, ARRIVALS: where the barrier counts

Key = TypeVar("Key", bound=Hashable)
Run = TypeVar("Run")


def interleaved(
    runs: Mapping[Key, Run], rounds: int, clock: Callable[[Run], float] | None = None
) -> dict[Key, list[float]]:  # fmt: skip
    """Seconds of `rounds` turns of each of `runs`, after one of each that does not count. `clock` runs one and returns
    its seconds; by default the runs are called.
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for round_ in range(rounds + 1):
        for key, run in runs.items():
            seconds = (clock or _call_seconds)(run)
            if round_:
                times[key].append(seconds)
    return times


def _call_seconds(run: Any) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def stored_bytes(
    rows: int, cols: int, layout: str, warm: bool, scheme: Scheme = q4_k.SCHEME
) -> tuple[np.ndarray, int, int]:
    """Bytes of a matrix of a few hundred true superblocks over and over; copies of it, and turns of a launch."""
    random = np.random.default_rng(0)

    def superblocks(height: int, width: int, each: int) -> np.ndarray:
        """Those of a random matrix: bytes [n, bytes of `each`-th parts of the whole]."""
        w = random.standard_normal((height, width), dtype=np.float32)
        return layouts.quantize_matrix(w, layout, scheme).reshape(each, -1)

    if layout == "row":
        pool = superblocks(POOL, scheme.values, POOL)
        matrix = pool[np.arange(rows * -(-cols // scheme.values)) % POOL].reshape(-1)
    else:
        bands = layouts.band_rows(rows)
        pools = {height: superblocks(height, POOL, POOL) for height in set(bands)}
        column = np.arange(cols)
        parts = [pools[height][(column + i * cols) % POOL].reshape(-1) for i, height in enumerate(bands)]
        matrix = np.concatenate(parts)
    size = matrix.size
    copies = 1 if warm else max(2, -(-COLD_BYTES // size))
    return matrix, copies, max(2, WARM_BYTES // size) if warm else copies


def upload(rows: np.ndarray, dtype, copies: int = 1, spare: int = 0) -> ti.Ndarray:
    """`copies` of an array [n, lanes] after one another, as an ndarray of vectors, with `spare` more at the end."""
    array = ndarray(dtype, (max(1, copies * len(rows) + spare),))
    if rows.size:
        host_view(array)[: copies * len(rows)].reshape(copies, *rows.shape)[:] = rows
    return array


def normal_x(cols: int, vectors: int) -> np.ndarray:
    """Inputs f32 [vectors, 16]: cols normal ones, then zeros."""
    x = np.zeros(vectors * 16, np.float32)
    x[:cols] = np.random.default_rng(1).standard_normal(cols)
    return x.reshape(-1, 16)


def threshold_for(cols: int, density: float) -> float:
    """Threshold above which a share `density` of `normal_x` lies."""
    return float(np.quantile(np.abs(normal_x(cols, vectors_for(cols)).reshape(-1)[:cols]), 1 - density))


class Rows:
    """Copies of a row-layout matrix: kernels "row" and, in Q4_K, "b1"."""

    def __init__(
        self, rows: int, cols: int, threads: int, warm: bool = False, decoder: Decoder = q4_k_decoder.DECODER
    ) -> None:
        start("cpu")
        self.rows, self.cols, self.threads, self.decoder = rows, cols, threads, decoder
        data, self.copies, self.turns = stored_bytes(rows, cols, "row", warm, decoder.scheme)
        self.superblocks = row_layout.row_superblocks(cols)
        quants, headers = row_layout.unpack(data, rows, cols, decoder)
        self.nbytes = quants.nbytes + headers.nbytes
        self.weights = upload(quants, u32x16, self.copies), upload(headers, u32x4, self.copies)
        self.vectors = (
            upload(normal_x(cols, self.superblocks * row_layout.X_VECTORS), f32x16),
            ndarray(f32x16, (threads * self.superblocks * row_layout.ROW_VECTORS,)),
            ndarray(f32x16, (vectors_for(rows),)),
        )
        self.arrivals = ndarray(ti.i32, (1,))

    def read_bytes(self, kernel: str, density: float) -> float:
        """Bytes of weights of one product: all, whatever the density."""
        return self.nbytes

    def run(self, kernel: str, density: float) -> None:
        """One launch."""
        host_view(self.arrivals)[0] = 0
        launch = make_row_launch(self.threads, kernel == "b1", self.decoder)
        threshold = threshold_for(self.cols, density) if kernel == "b1" else 0.0
        addresses, sizes = list(map(address, self.weights)), [self.rows, self.superblocks, self.copies, self.turns]
        launch(*self.weights, *self.vectors, self.arrivals, addresses, sizes, threshold)
        ti.sync()


class Zigzag:
    """Copies of a zigzag matrix: kernels "zigzag", "full" and, in Q4_K, "b2"."""

    def __init__(
        self, rows: int, cols: int, threads: int, warm: bool = False, panel_bands: int | None = None,
        decoder: Decoder = q4_k_decoder.DECODER,
    ) -> None:  # fmt: skip
        start("cpu")
        self.threads, self.decoder = threads, decoder
        self.shape = zigzag.ZigzagShape(rows, cols, panel_bands or preferred_panel_bands(), decoder.planes)
        data, self.copies, self.turns = stored_bytes(rows, cols, "zigzag", warm, decoder.scheme)
        quants, tail, headers = zigzag.unpack(data, self.shape, decoder)
        self.weights = (
            upload(quants, u32x16, self.copies), upload(tail, u32x8, self.copies),
            upload(headers, u32x4, self.copies, QUAD_BANDS - 1),
        )  # fmt: skip
        self.x = upload(normal_x(cols, vectors_for(cols)), f32x16)
        stride = vectors_for(cols) * 16 + 16
        # Lists of everything and of each worker, their workspaces, and the barrier's counter.
        arrivals = (threads + 1) * stride + threads * WORKSPACE_INTEGERS
        self.lists = ndarray(ti.i32, (arrivals + 1,))
        host_view(self.lists)[:cols] = np.arange(cols)  # the active list of dense products
        self.rounds = [self.copies, self.turns, stride, arrivals]
        self.scratch = ndarray(f32x16, (threads * (self.shape.padded_rows // 16 + SCRATCH_VECTORS),))

    def read_bytes(self, kernel: str, density: float) -> float:
        """Bytes of weights of one product."""
        return round(density * self.shape.cols) * self.shape.bytes_per_column

    def run(self, kernel: str, density: float) -> None:
        """One launch; the full kernel collects its index in every product."""
        host_view(self.lists)[self.rounds[ARRIVALS]] = 0
        threshold = -1.0 if kernel == "zigzag" else threshold_for(self.shape.cols, density)
        launch = (
            make_skipping_launch(self.threads) if kernel == "b2" else make_zigzag_launch(self.threads, self.decoder)
        )
        shape = self.shape
        geometry = [shape.cols, shape.full_bands, shape.tail_bands, shape.panel_bands]
        addresses = [*map(address, self.weights), address(self.lists)]
        launch(*self.weights, self.x, self.lists, self.scratch, addresses, geometry, threshold, self.rounds)
        ti.sync()


@functools.cache
def make_row_launch(workers: int, skips: bool, decoder: Decoder):
    """The row-layout product over `turns` matrices, `copies` different ones."""
    gemv = row_gemv.make_row_gemv(workers, skips, skips, False, decoder)
    quant_vectors, header_vectors = decoder.planes.quant_vectors, decoder.planes.header_vectors
    wait_for_all = make_wait_for_all()

    @ti.kernel
    def launch(
        quants: array_of(u32x16), headers: array_of(u32x4), x: array_of(f32x16), scratch: array_of(f32x16),
        y: array_of(f32x16), arrivals: array_of(ti.i32), addresses: i64x2, sizes: i32x4, threshold: ti.f32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            quants_address, headers_address = addresses[0], addresses[1]
            rows, superblocks = sizes[0], sizes[1]
            lowest = threshold
            for turn in range(sizes[3]):
                first = turn % sizes[2] * rows * superblocks
                first_quants = first * quant_vectors
                first_headers = first * header_vectors
                matrix = ti.static(
                    row_layout.RowMatrix(
                        quants, first_quants, headers, first_headers, quants_address, headers_address, rows, superblocks
                    )
                )
                inputs = ti.static(row_layout.RowInputs(x, 0, lowest))
                gemv(matrix, inputs, scratch, worker * superblocks * row_layout.ROW_VECTORS, y, 0, worker)
                wait_for_all(arrivals, 0, (turn + 1) * workers)

    return launch


@functools.cache
def make_zigzag_launch(workers: int, decoder: Decoder):
    """The zigzag product over `turns` matrices: dense for a negative threshold, else with the index collected in each,
    by every worker for itself as in a token.
    """
    gemv = make_gemv(workers, False, decoder)
    quant_vectors, header_vectors = decoder.planes.quant_vectors, decoder.planes.header_vectors
    collect, _ = make_collect()
    wait_for_all = make_wait_for_all()

    @ti.kernel
    def launch(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), x: array_of(f32x16),
        lists: array_of(ti.i32), a: array_of(f32x16), addresses: i64x4, geometry: i32x4, threshold: ti.f32,
        rounds: i32x4,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            quants_address, tail_address, headers_address = addresses[0], addresses[1], addresses[2]
            cols, full_bands, tail_bands, panel_bands = geometry[0], geometry[1], geometry[2], geometry[3]
            stride = rounds[STRIDE]
            lowest = threshold
            bands = full_bands + tail_bands
            workspace = addresses[3] + ti.cast(((workers + 1) * stride + worker * WORKSPACE_INTEGERS) * 4, ti.i64)
            scratch = workers * bands * 16 + worker * SCRATCH_VECTORS
            sums = ti.static(Sums(a, 0, scratch))
            for turn in range(rounds[TURNS]):
                copy = turn % rounds[COPIES]
                first_quants = copy * full_bands * cols * quant_vectors
                first_tail = copy * tail_bands * cols
                first_headers = copy * bands * cols * header_vectors
                matrix = ti.static(
                    Matrix(
                        quants, first_quants, tail, first_tail, headers, first_headers, quants_address, tail_address,
                        headers_address, cols, full_bands, tail_bands, panel_bands,
                    )
                )  # fmt: skip
                active = 0
                count = cols
                if lowest >= 0.0:
                    active = (worker + 1) * stride
                    count = collect(x, 0, (cols + 15) // 16, lowest, lists, addresses[3], active)
                gemv(matrix, ti.static(Inputs(x, 0, lists, active, count)), sums, workspace, worker)
                wait_for_all(lists, rounds[ARRIVALS], (turn + 1) * workers)

    return launch


@functools.cache
def make_skipping_launch(workers: int):
    """B2 over `turns` matrices."""
    gemv = make_skipping_gemv(workers)
    wait_for_all = make_wait_for_all()

    @ti.kernel
    def launch(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), x: array_of(f32x16),
        lists: array_of(ti.i32), a: array_of(f32x16), addresses: i64x4, geometry: i32x4, threshold: ti.f32,
        rounds: i32x4,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            quants_address, tail_address, headers_address = addresses[0], addresses[1], addresses[2]
            cols, full_bands, tail_bands, panel_bands = geometry[0], geometry[1], geometry[2], geometry[3]
            stride = rounds[STRIDE]
            lowest = threshold
            bands = full_bands + tail_bands
            workspace = addresses[3] + ti.cast(((workers + 1) * stride + worker * WORKSPACE_INTEGERS) * 4, ti.i64)
            scratch = workers * bands * 16 + worker * SCRATCH_VECTORS
            sums = ti.static(Sums(a, 0, scratch))
            for turn in range(rounds[TURNS]):
                copy = turn % rounds[COPIES]
                first_quants = copy * full_bands * cols * 2
                first_tail = copy * tail_bands * cols
                first_headers = copy * bands * cols
                matrix = ti.static(
                    Matrix(
                        quants, first_quants, tail, first_tail, headers, first_headers, quants_address, tail_address,
                        headers_address, cols, full_bands, tail_bands, panel_bands,
                    )
                )  # fmt: skip
                chosen = (worker + 1) * stride
                gemv(matrix, ti.static(Inputs(x, 0, lists, chosen, 0)), lowest, sums, workspace, worker)
                wait_for_all(lists, rounds[ARRIVALS], (turn + 1) * workers)

    return launch


def collect_seconds(cols: int, rounds: int = 5) -> float:
    """Time to collect the index of `cols` inputs in cache at density 0.5 (branch-free: density does not matter)."""
    start("cpu")
    x, active = upload(normal_x(cols, vectors_for(cols)), f32x16), ndarray(ti.i32, (vectors_for(cols) * 16 + 1,))
    launch = make_collections()
    times = interleaved({0: lambda: launch(x, vectors_for(cols), 0.6745, active, address(active))}, rounds)[0]
    return float(np.median(times)) / COLLECTIONS


@functools.cache
def make_collections():
    """COLLECTIONS index collections of the same inputs by one worker."""
    collect, _ = make_collect()

    @ti.kernel
    def launch(
        x: array_of(f32x16), vectors: ti.i32, threshold: ti.f32, active: array_of(ti.i32), active_address: ti.i64
    ) -> ti.i32:
        total = 0
        ti.loop_config(serialize=True)
        for _ in range(COLLECTIONS):
            total += collect(x, 0, vectors, threshold, active, active_address, 0)
        return total

    return launch
