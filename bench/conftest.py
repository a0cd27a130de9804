"""What the benchmarks are measured against: how fast this machine reads memory, in the same session."""

import time

import pytest

from spqt_ti.backend import host_view, start, ti
from spqt_ti.kernels.vectors import array_of, u32x16
from spqt_ti.kernels.workers import share_start

READ_VECTORS = 1 << 22  # 256 MiB: far beyond any last-level cache
ROUNDS = 9


def make_reader(workers: int):
    """A kernel that reads an ndarray once, every worker its contiguous share, with nothing to do but add up."""

    @ti.kernel
    def read_all(data: array_of(u32x16), vectors: ti.i32, out: array_of(u32x16)):
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            sums = [u32x16(0) for _ in ti.static(range(8))]
            for i in range(share_start(vectors >> 3, worker, workers), share_start(vectors >> 3, worker + 1, workers)):
                for k in ti.static(range(8)):
                    sums[k] += data[8 * i + k]
            total = u32x16(0)
            for k in ti.static(range(8)):
                total += sums[k]
            out[worker] = total

    return read_all


@pytest.fixture(scope="session")
def read_bandwidth() -> float:
    """Bytes per second at which all workers together read memory: the ceiling of a GEMV on cold weights (best of 9)."""
    workers = start("cpu").threads
    data, out = ti.ndarray(u32x16, (READ_VECTORS,)), ti.ndarray(u32x16, (workers,))
    view = host_view(data)
    view[:] = 1  # pages that were never written would all be the same one
    reader = make_reader(workers)
    times = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        reader(data, READ_VECTORS, out)
        ti.sync()
        times.append(time.perf_counter() - begin)
    return view.nbytes / min(times[1:])
