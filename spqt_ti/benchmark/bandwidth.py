"""The ceiling that decoding is compared with: how fast this machine reads memory in order."""

import time

import numpy as np

from spqt_ti.backend import host_view, ndarray, start, ti
from spqt_ti.kernels.cpu.vectors import array_of, u32x16
from spqt_ti.kernels.cpu.workers import share_start

_BYTES = 256 << 20  # more than any last-level cache here


def read_bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes per second at which `threads` workers read 256 MiB in order: the median of `rounds`."""
    start("cpu")
    data = ndarray(u32x16, (_BYTES // 64,))
    host_view(data)[:] = 1
    sums = ndarray(u32x16, (threads,))
    kernel = _make_reader(threads)
    kernel(data, sums)
    ti.sync()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        kernel(data, sums)
        ti.sync()
        times.append(time.perf_counter() - begin)
    return _BYTES / float(np.median(times))


def _make_reader(workers: int):
    vectors = _BYTES // 64

    @ti.kernel
    def read(data: array_of(u32x16), sums: array_of(u32x16)):
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            first = share_start(vectors, worker, workers)
            # Four lines a turn: with eight, each load strides 512 bytes and one core reads at half the speed.
            parts = [u32x16(0) for _ in ti.static(range(4))]
            for i in range((share_start(vectors, worker + 1, workers) - first) // 4):
                for k in ti.static(range(4)):
                    parts[k] ^= data[first + 4 * i + k]
            sums[worker] = (parts[0] ^ parts[1]) ^ (parts[2] ^ parts[3])

    return read
