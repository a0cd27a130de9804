"""Where the time of a persistent kernel goes: worker 0 reads the CPU's clock between phases."""

import functools
import time
from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.errors import BackendError
from spqt_ti.kernels.cpu import native


class Clock(NamedTuple):
    """Ticks of phase p at ticks[first + p], the reading that phases are counted from, and the worker."""

    ticks: Any
    first: Any
    last: Any
    worker: Any


def make_stopwatch(enabled: bool):
    """Build the ti.funcs `read_clock` and `mark`; without `enabled` both compile to nothing.

    `mark(clock, phase)`, for a Clock, adds the ticks since its `last` to those of `phase` and sets `last` to now.

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
    def add_ticks(clock: ti.template(), last: ti.template(), phase):
        now = read_clock()
        entry = clock.first + phase
        clock.ticks[entry] = clock.ticks[entry] + (now - last)
        last = now

    @ti.func
    def mark(clock: ti.template(), phase):
        if ti.static(enabled) and clock.worker == 0:
            add_ticks(clock, clock.last, phase)

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
