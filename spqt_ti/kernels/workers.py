"""Workers of a persistent kernel: one iteration of a parallel loop per thread, in step through a spin barrier."""

from spqt_ti.backend import ti


@ti.func
def share_start(total, worker, workers):
    """First of `total` items that `worker` takes: shares are contiguous and differ by at most one."""
    base = total // workers
    return worker * base + ti.min(worker, total - base * workers)


@ti.func
def wait_for_all(arrivals: ti.template(), place, target):
    """Spin until `target` arrivals have been counted at `arrivals[place]`, this one included.

    A barrier costs 0.2-0.5 us; returning from a kernel and launching the next costs a thread wake-up, 25-30 us.
    """
    ti.atomic_add(arrivals[place], 1)
    while ti.atomic_or(arrivals[place], 0) < target:
        pass
