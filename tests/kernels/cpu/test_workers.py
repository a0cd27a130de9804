"""Shares of work and the barrier, inside kernels."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spqt_ti.backend import available_threads, host_view, start, ti
from spqt_ti.kernels.cpu.vectors import array_of
from spqt_ti.kernels.cpu.workers import make_wait_for_all, share_start


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@ti.kernel
def write_starts(total: ti.i32, workers: ti.i32, starts: array_of(ti.i32)):
    ti.loop_config(serialize=True)
    for worker in range(workers + 1):
        starts[worker] = share_start(total, worker, workers)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 256))
@example(0, 1)
@example(1, 256)
@example(576, 2)
@example(2**31 - 1, 256)
def test_shares_cover_everything_evenly(total, workers) -> None:
    starts = ti.ndarray(ti.i32, (workers + 1,))
    write_starts(total, workers, starts)
    starts = host_view(starts).astype(np.int64)
    assert (starts[0], starts[-1]) == (0, total)
    loads = np.diff(starts)
    assert loads.min() == total // workers
    assert loads.max() == -(-total // workers)
    assert (np.diff(loads) <= 0).all()  # the first workers take what is left over


def make_relay(workers: int):
    wait_for_all = make_wait_for_all()

    @ti.kernel
    def relay(phases: ti.i32, arrivals: array_of(ti.i32), seen: array_of(ti.i32), late: array_of(ti.i32)):
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for phase in range(phases):
                seen[worker * phases + phase] = phase + 1
                wait_for_all(arrivals, 0, (phase + 1) * workers)
                for other in range(workers):
                    if seen[other * phases + phase] != phase + 1:
                        ti.atomic_add(late[0], 1)

    return relay


@pytest.mark.parametrize("workers", [1, 2])
def test_nobody_passes_the_barrier_early(workers) -> None:
    if workers > available_threads():
        pytest.skip("needs two CPUs")
    phases = 1000
    arrivals, late = ti.ndarray(ti.i32, (1,)), ti.ndarray(ti.i32, (1,))
    seen = ti.ndarray(ti.i32, (workers * phases,))
    for array in (arrivals, late, seen):
        host_view(array)[:] = 0
    make_relay(workers)(phases, arrivals, seen, late)
    ti.sync()
    assert host_view(arrivals)[0] == workers * phases
    assert host_view(late)[0] == 0
