"""Workers of a persistent kernel: one iteration of a parallel loop per thread, in step through a spin barrier."""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu import native


@ti.func
def share_start(total, worker, workers):
    """First of `total` items that `worker` takes: shares are contiguous and differ by at most one."""
    base = total // workers
    return worker * base + ti.min(worker, total - base * workers)


def make_wait_for_all():
    """Build the barrier: a ti.func that spins until `target` arrivals, its own included, are counted at an index.

    A barrier costs 0.2-0.5 us; returning from a kernel and launching the next costs a thread wake-up, 25-30 us. Where
    the native helpers are, a worker that waits long gives its core away: another process may have its colleague's, and
    two processes that both spin would stop each other (measured: 5 times faster beside a busy process).
    """
    helpers = native.load()
    relaxes = helpers is not None

    @ti.func
    def wait_for_all(arrivals: ti.template(), index, target):
        ti.atomic_add(arrivals[index], 1)
        turns = 0
        while ti.atomic_or(arrivals[index], 0) < target:
            if ti.static(relaxes):
                helpers.relax(turns)

    return wait_for_all
