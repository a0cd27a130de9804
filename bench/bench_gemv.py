"""Speed of the Q4_K GEMVs on weights that are not in cache: `pytest bench/bench_gemv.py --benchmark-enable`.

A round is one launch that goes once through as many copies of the matrix as exceed the last-level cache, with all
workers meeting after each, as in a token. `extra_info` has the time per matrix, the bytes that it has to read (for
sparse products: of the active columns alone) per second, their fraction of what this machine can read, measured in the
same session, and the speed-up over the dense row layout.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pytest

from spqt_ti.backend import address, host_view, start, ti
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k
from spqt_ti.kernels import row_gemv, zigzag
from spqt_ti.kernels.collect import collect
from spqt_ti.kernels.gemv import SCRATCH_VECTORS, make_gemv
from spqt_ti.kernels.vectors import array_of, f32x8, f32x16, u32x4, u32x8, u32x16, vectors_for
from spqt_ti.kernels.workers import make_wait_for_all

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

COLD_BYTES = 128 << 20  # all copies of a matrix together; the last-level cache of the machine in the README has 32 MiB
ROUNDS = 5
COLLECTIONS = 1000  # in a launch
DENSITIES = (1.0, 0.75, 0.6, 0.5, 0.35)
SMOLLM2 = [(960, 576), (576, 576), (3072, 576), (576, 1536)]  # q+k+v, o, gate+up, down
LARGE = [(2048, 2048), (4096, 4096), (14336, 4096), (4096, 14336)]

_row_seconds: dict[tuple[int, int], float] = {}  # dense, by shape


@pytest.fixture(scope="module", params=SMOLLM2 + LARGE, ids=lambda s: f"{s[0]}x{s[1]}")
def shape(request) -> tuple[int, int]:
    return request.param


@pytest.fixture(scope="module")
def row_matrix(shape):
    return Rows(*shape)


@pytest.fixture(scope="module")
def zigzag_matrix(shape):
    return Zigzag(*shape)


def test_row_dense(benchmark, row_matrix, read_bandwidth):
    report(benchmark, row_matrix, lambda: row_matrix.run(None), read_bandwidth)
    if benchmark.enabled:
        _row_seconds[row_matrix.shape] = benchmark.extra_info["microseconds"] / 1e6


@pytest.mark.parametrize("density", [0.5])
def test_row_naive_sparse(benchmark, row_matrix, density, read_bandwidth):
    """B1 of the paper: the row layout with zero inputs skipped on the fly."""
    threshold = float(np.quantile(np.abs(row_matrix.x), 1 - density))
    report(benchmark, row_matrix, lambda: row_matrix.run(threshold), read_bandwidth)


def test_zigzag_dense(benchmark, zigzag_matrix, read_bandwidth):
    zigzag_matrix.activate(1.0)
    report(benchmark, zigzag_matrix, zigzag_matrix.run, read_bandwidth)


@pytest.mark.parametrize("density", DENSITIES[1:])
def test_zigzag_sparse(benchmark, zigzag_matrix, density, read_bandwidth):
    """The active list is there already; see test_collect for what it costs."""
    zigzag_matrix.activate(density)
    report(benchmark, zigzag_matrix, zigzag_matrix.run, read_bandwidth)


@pytest.mark.parametrize("cols", sorted({cols for _, cols in SMOLLM2 + LARGE}))
def test_collect(benchmark, cols):
    """The active list of one x in cache, at density 0.5: one worker, branch-free, so that density does not matter."""
    start("cpu")
    x, active = ti.ndarray(f32x16, (vectors_for(cols),)), ti.ndarray(ti.i32, (cols + 17,))
    host_view(x).reshape(-1)[:] = np.random.default_rng(0).standard_normal(vectors_for(cols) * 16)
    benchmark.pedantic(make_collections(), (x, vectors_for(cols), 0.6745, active), rounds=ROUNDS, warmup_rounds=1)
    if benchmark.enabled:
        benchmark.extra_info["microseconds"] = benchmark.stats.stats.median / COLLECTIONS * 1e6


def report(benchmark, matrix, run, read_bandwidth: float) -> None:
    """Time `run`, one launch over all copies of `matrix`; the rest goes to extra_info."""
    benchmark.pedantic(run, rounds=ROUNDS, warmup_rounds=1)
    if not benchmark.enabled:
        return
    seconds = benchmark.stats.stats.median / matrix.copies
    speed = matrix.read_bytes / seconds
    info = {"microseconds": seconds * 1e6, "GB/s": speed / 1e9, "read_fraction": speed / read_bandwidth}
    if matrix.shape in _row_seconds:
        info["speedup_over_row"] = _row_seconds[matrix.shape] / seconds
    benchmark.extra_info.update({k: round(v, 3) for k, v in info.items()})


def stored_bytes(rows: int, cols: int, layout: str) -> tuple[np.ndarray, int]:
    """Bytes of a matrix of a few hundred true superblocks over and over, and how many copies of it make COLD_BYTES."""
    blocks = q4_k.quantize(np.random.default_rng(0).standard_normal((251, 256), dtype=np.float32))
    size = layouts.nbytes(rows, cols, layout)
    matrix = blocks[np.arange(-(-size // q4_k.BYTES)) % len(blocks)].reshape(-1)[:size]
    return matrix, max(2, -(-COLD_BYTES // size))


def upload(rows: np.ndarray, dtype, copies: int = 1) -> ti.Ndarray:
    """`copies` of an array [n, lanes] after one another, as an ndarray of vectors."""
    array = ti.ndarray(dtype, (max(1, copies * len(rows)),))
    if rows.size:
        host_view(array).reshape(copies, *rows.shape)[:] = rows
    return array


def normal_x(cols: int, vectors: int) -> np.ndarray:
    """Inputs f32 [vectors, 16]: cols normal ones, then zeros."""
    x = np.zeros(vectors * 16, np.float32)
    x[:cols] = np.random.default_rng(1).standard_normal(cols)
    return x.reshape(-1, 16)


@dataclass
class Rows:
    """Copies of a row-layout matrix, and a launch over them."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        workers = start("cpu").threads
        self.shape = self.rows, self.cols
        data, self.copies = stored_bytes(self.rows, self.cols, "row")
        self.read_bytes = data.size
        self.blocks = -(-self.cols // 256)
        quants, headers = row_gemv.split(data, self.rows, self.cols)
        x = normal_x(self.cols, self.blocks * row_gemv.X_VECTORS)
        self.x = x.reshape(-1)[: self.cols]
        self.weights = upload(quants, u32x16, self.copies), upload(headers, u32x4, self.copies)
        self.vectors = (
            upload(x, f32x16),
            ti.ndarray(f32x16, (workers * self.blocks * row_gemv.X_VECTORS,)),
            ti.ndarray(f32x8, (workers * self.blocks,)),
            ti.ndarray(ti.i32, (workers * self.blocks,)),
            ti.ndarray(ti.f32, (self.rows,)),
        )
        self.arrivals = ti.ndarray(ti.i32, (1,))

    def run(self, threshold: float | None) -> None:
        host_view(self.arrivals)[0] = 0
        kernel = make_row_launch(start("cpu").threads, threshold is not None)
        kernel(*self.weights, self.rows, self.blocks, threshold or 0.0, *self.vectors, self.copies, self.arrivals)
        ti.sync()


@dataclass
class Zigzag:
    """Copies of a zigzag matrix, an active list, and a launch over them."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        workers = start("cpu").threads
        self.shape = self.rows, self.cols
        self.geometry = zigzag.ZigzagShape(self.rows, self.cols)
        data, self.copies = stored_bytes(self.rows, self.cols, "zigzag")
        quants, tail, headers = zigzag.split(data, self.geometry)
        self.quants = upload(quants, u32x16, self.copies)
        self.tail = upload(tail, u32x8, self.copies)
        self.headers = upload(headers, u32x4, self.copies)
        self.x = upload(normal_x(self.cols, vectors_for(self.cols)), f32x16)
        self.active = ti.ndarray(ti.i32, (self.cols + 16,))
        self.scratch = ti.ndarray(f32x16, (workers * (self.geometry.padded_rows // 16 + SCRATCH_VECTORS),))
        self.arrivals = ti.ndarray(ti.i32, (1,))

    def activate(self, density: float) -> None:
        """A random ascending active list of the given density."""
        self.count = round(density * self.cols)
        chosen = np.random.default_rng(2).permutation(self.cols)[: self.count]
        host_view(self.active)[: self.count] = np.sort(chosen)
        self.read_bytes = self.count * self.geometry.bytes_per_column

    def run(self) -> None:
        host_view(self.arrivals)[0] = 0
        geometry = self.geometry
        kernel = make_zigzag_launch(start("cpu").threads)
        kernel(
            self.quants, self.tail, self.headers, address(self.quants), address(self.headers), geometry.cols,
            geometry.full_bands, geometry.tail_bands, geometry.panel_bands, self.x, self.active, self.count,
            self.scratch, self.copies,
            self.arrivals,
        )  # fmt: skip
        ti.sync()


@functools.cache
def make_row_launch(workers: int, skips: bool):
    gemv = row_gemv.make_row_gemv(workers, skips)

    wait_for_all = make_wait_for_all()

    @ti.kernel
    def launch(
        quants: array_of(u32x16), headers: array_of(u32x4), rows: ti.i32, blocks: ti.i32, threshold: ti.f32,
        x: array_of(f32x16), ordered: array_of(f32x16), sums: array_of(f32x8), flags: array_of(ti.i32),
        y: array_of(ti.f32), copies: ti.i32, arrivals: array_of(ti.i32),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for copy in range(copies):
                first = copy * rows * blocks
                gemv(quants, headers, first, rows, blocks, x, threshold, ordered, sums, flags, y, worker)
                wait_for_all(arrivals, 0, (copy + 1) * workers)

    return launch


@functools.cache
def make_zigzag_launch(workers: int):
    gemv = make_gemv(workers)

    wait_for_all = make_wait_for_all()

    @ti.kernel
    def launch(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), quants_address: ti.i64,
        headers_address: ti.i64, cols: ti.i32, full_bands: ti.i32, tail_bands: ti.i32, panel_bands: ti.i32,
        x: array_of(f32x16), active: array_of(ti.i32), count: ti.i32, a: array_of(f32x16), copies: ti.i32,
        arrivals: array_of(ti.i32),
    ):  # fmt: skip
        bands = full_bands + tail_bands
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for copy in range(copies):
                gemv(
                    quants, copy * full_bands * cols * 2, tail, copy * tail_bands * cols, headers, copy * bands * cols,
                    quants_address, headers_address, cols, full_bands, tail_bands, panel_bands, x, 0, active, 0, count,
                    a, 0, workers * bands * 16 + worker * SCRATCH_VECTORS, worker,
                )  # fmt: skip
                wait_for_all(arrivals, 0, (copy + 1) * workers)

    return launch


@functools.cache
def make_collections():
    @ti.kernel
    def launch(x: array_of(f32x16), vectors: ti.i32, threshold: ti.f32, active: array_of(ti.i32)) -> ti.i32:
        total = 0
        ti.loop_config(serialize=True)
        for _ in range(COLLECTIONS):
            total += collect(x, 0, vectors, threshold, active, 0)
        return total

    return launch
