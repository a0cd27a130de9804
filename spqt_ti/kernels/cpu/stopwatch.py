"""Where the time of a persistent kernel goes: worker 0 reads the CPU's clock between phases."""

import functools
import time

from spqt_ti.backend import ti
from spqt_ti.errors import BackendError
from spqt_ti.kernels.cpu import native


def make_stopwatch(enabled: bool):
    """Build the ti.funcs `read_clock` and `mark`; without `enabled` both compile to nothing.

    `mark(ticks, last, phase, worker)` adds the ticks since `last` to ticks[phase] and sets `last` to now.

    Raises BackendError where `enabled` and there is no clock to read.
    """
    helpers = native.load()
    if enabled and helpers is None:
        raise BackendError("profiling inside the kernel needs the native helpers (Linux on x86-64 with FMA)")

    @ti.func
    def read_clock():
        now = ti.cast(0, ti.i64)
        if ti.static(enabled):
            helpers.read_clock(now)
        return now

    @ti.func
    def mark(ticks: ti.template(), last: ti.template(), phase, worker):
        if ti.static(enabled) and worker == 0:
            now = read_clock()
            ticks[phase] = ticks[phase] + (now - last)
            last = now

    return read_clock, mark


@functools.cache
def seconds_per_tick() -> float:
    """Seconds per tick of the clock, from 20 ms of both clocks. Raises BackendError where there is no clock to read."""
    read_clock, _ = make_stopwatch(True)

    @ti.kernel
    def now() -> ti.i64:
        t = ti.cast(0, ti.i64)
        ti.loop_config(serialize=True)
        for _ in range(1):
            t = read_clock()
        return t

    now()
    begin, first = time.perf_counter(), now()
    time.sleep(0.02)
    end, last = time.perf_counter(), now()
    return (end - begin) / (last - first)
