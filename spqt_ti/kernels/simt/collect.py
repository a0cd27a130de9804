"""Index collection on GPUs: the set is exactly {i : |x_i| > threshold}, or |x_i| * weight_i > threshold, as in
kernels/cpu/collect.py.

Two ways. In the token, a group collects a segment in ascending order: each thread has a run of neighbouring inputs, and
one scan over the threads' counts says where they go; segments stay where they are (see active_list.py).
`make_collect_kernel` makes one list of segments of 1024 inputs each: either a segment reserves its entries with one
atomic (ascending inside a segment, the order of segments is open), or a second pass puts the segments in order.
"""

from typing import Any, NamedTuple

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.active_list import Segments
from spqt_ti.kernels.simt.groups import SHARED, array_of, exclusive_scan, group_sum, zero
from spqt_ti.kernels.simt.transfer import upload, zeros

SEGMENT = 1024
_THREADS = SEGMENT // 2
_THREADS_LOG2 = _THREADS.bit_length() - 1


class Inputs(NamedTuple):
    """Inputs in an array: the offset of the first."""

    values: Any
    at: Any


class Rule(NamedTuple):
    """Which inputs are active: |x| > threshold, or |x| * weight > threshold where they are weighted; the weights are in
    an array from an offset on.
    """

    threshold: Any
    weights: Any
    weights_at: Any
    weighted: Any


@ti.func
def is_active(x: ti.template(), at, weights: ti.template(), weight, weighted, threshold):
    """1 if |x[at]|, where `weighted` times weights[weight], is above the threshold, else 0; 0 for NaN."""
    size = ti.max(x[at], 0.0 - x[at])
    if weighted:
        size = size * weights[weight]
    return ti.select(size > threshold, 1, 0)


@ti.func
def satisfies(inputs: ti.template(), i, rule: ti.template(), weight):
    """`is_active` for the i-th of some inputs, which has this number among the weights."""
    return is_active(
        inputs.values, inputs.at + i, rule.weights, rule.weights_at + weight, rule.weighted, rule.threshold
    )


@ti.func
def masked(inputs: ti.template(), i, rule: ti.template()):
    """The i-th of all inputs, 0 if it is not active; a threshold below 0: all are."""
    value = inputs.values[inputs.at + i]
    if rule.threshold >= 0.0 and not satisfies(inputs, i, rule, i):
        value = 0.0
    return value


def make_collect_segment(segments: Segments, threads: int):
    """Build the ti.func that collects a segment of an active list (see active_list.py) with a group of `threads`
    threads.

    A thread looks at the segment's inputs t * run .. t * run + run - 1, which it may therefore have written itself
    before.
    """
    run = -(-segments.length // threads)

    @ti.func
    def collect_segment(
        inputs: ti.template(), segment, rule: ti.template(), active: ti.template(), counts: ti.template(), t
    ):  # fmt: skip
        """Write the active ones of the segment's inputs, which `inputs` has alone, into the active list, and their
        number among its lengths. The rule's weights are of all inputs.

        `counts`: shared i32 [threads].
        """
        first = segment * segments.length
        end = ti.min(first + segments.length, segments.cols)
        mine = 0
        for k in range(run):
            i = t * run + k
            if first + i < end:
                mine += satisfies(inputs, i, rule, first + i)
        ti.simt.block.sync()
        counts[t] = mine
        total = exclusive_scan(counts, t, threads)
        entry = active.entries + first + counts[t]
        for k in range(run):
            i = t * run + k
            # Not `and`: Taichi calls a function on its right in any case.
            if first + i < end:  # noqa: SIM102
                if satisfies(inputs, i, rule, first + i):
                    active.integers[entry] = first + i
                    entry += 1
        if t == 0:
            active.integers[active.lengths + segment] = total

    return collect_segment


def make_zero_inactive(segments: Segments, threads: int):
    """Build the ti.func that puts zeros over a segment's inputs that are not active, with the threads of
    `make_collect_segment`: each looks at the same inputs.
    """
    run = -(-segments.length // threads)

    @ti.func
    def zero_inactive(inputs: ti.template(), segment, rule: ti.template(), target: ti.template(), t):
        """`target`: where the segment's inputs lie; `inputs` may be a copy of them."""
        first = segment * segments.length
        for k in range(run):
            i = t * run + k
            if i < segments.length and first + i < segments.cols:  # noqa: SIM102
                if not satisfies(inputs, i, rule, first + i):
                    target.values[target.at + i] = 0.0

    return zero_inactive


def make_collect_kernel(cols: int, ordered: bool):
    """Build the kernel (x f32 [cols], weights f32 [cols], weighted, threshold, active i32 [cols], counts i32
    [1 + segments]) -> None.

    counts[0] must be 0 before and is the number of active inputs afterwards; the others are scratch. `ordered`:
    ascending, at the price of a second pass; otherwise the order of segments may change from run to run.
    """
    segments = segment_count(cols)

    @ti.func
    def flag(x: ti.template(), weights: ti.template(), weighted, threshold, i):
        result = 0
        if i < cols:
            result = is_active(x, i, weights, i, weighted, threshold)
        return result

    @ti.func
    def scan_segment(
        x: ti.template(), weights: ti.template(), weighted, threshold, flags: ti.template(), first, t
    ):  # fmt: skip
        """Exclusive scan of a segment's flags into `flags`; returns the number of active inputs."""
        ti.simt.block.sync()
        for k in ti.static(range(2)):
            flags[2 * t + k] = flag(x, weights, weighted, threshold, first + 2 * t + k)
        return exclusive_scan(flags, t, SEGMENT)

    @ti.func
    def scatter(
        x: ti.template(), weights: ti.template(), weighted, threshold, flags: ti.template(), first, t,
        active: ti.template(), base,
    ):  # fmt: skip
        for k in ti.static(range(2)):
            i = first + 2 * t + k
            if flag(x, weights, weighted, threshold, i):
                active[base + flags[2 * t + k]] = i

    @ti.kernel
    def collect_reserving(
        x: array_of(ti.f32), weights: array_of(ti.f32), weighted: ti.i32, threshold: ti.f32, active: array_of(ti.i32),
        counts: array_of(ti.i32),
    ):  # fmt: skip
        ti.loop_config(block_dim=_THREADS)
        for i in range(segments * _THREADS):
            flags = ti.simt.block.SharedArray((SEGMENT,), ti.i32)
            base = ti.simt.block.SharedArray((1,), ti.i32)
            t = i & (_THREADS - 1)
            first = (i >> _THREADS_LOG2) * SEGMENT
            total = scan_segment(x, weights, weighted, threshold, flags, first, t)
            # Every thread runs the atomic, and only one adds: it is a barrier on Metal.
            before = ti.atomic_add(counts[0], ti.select(t == 0, total, 0))
            if t == 0:
                base[t] = before
            ti.simt.block.sync()
            scatter(x, weights, weighted, threshold, flags, first, t, active, base[zero(t)])

    @ti.kernel
    def collect_in_order(
        x: array_of(ti.f32), weights: array_of(ti.f32), weighted: ti.i32, threshold: ti.f32, active: array_of(ti.i32),
        counts: array_of(ti.i32),
    ):  # fmt: skip
        ti.loop_config(block_dim=_THREADS)
        for i in range(segments * _THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.i32)
            t = i & (_THREADS - 1)
            segment = i >> _THREADS_LOG2
            mine = 0
            for k in ti.static(range(2)):
                mine += flag(x, weights, weighted, threshold, segment * SEGMENT + k * _THREADS + t)
            total = group_sum(shared, t, mine, _THREADS)
            if t == 0:
                counts[1 + segment] = total
        ti.loop_config(block_dim=_THREADS)
        for i in range(segments * _THREADS):
            flags = ti.simt.block.SharedArray((SEGMENT,), ti.i32)
            t = i & (_THREADS - 1)
            segment = i >> _THREADS_LOG2
            total = scan_segment(x, weights, weighted, threshold, flags, segment * SEGMENT, t)
            base = 0
            for before in range(segment):
                base += counts[1 + before]
            scatter(x, weights, weighted, threshold, flags, segment * SEGMENT, t, active, base)
            if t == 0 and segment == segments - 1:
                counts[0] = base + total

    return collect_in_order if ordered else collect_reserving


def segment_count(cols: int) -> int:
    """Segments of `cols` inputs."""
    return -(-cols // SEGMENT)


class Collector:
    """Collection as a kernel of its own, for tests and benchmarks, of `cols` inputs."""

    def __init__(self, cols: int, ordered: bool = True) -> None:
        self._kernel = make_collect_kernel(cols, ordered)
        self._active, self._counts = zeros(ti.i32, cols), zeros(ti.i32, 1 + segment_count(cols))

    def __call__(self, x: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> np.ndarray:
        """Active list (i32) of x (f32 [cols]), weighted by `weights` (f32 [cols])."""
        device_x = upload(x)
        self.run(device_x, threshold, None if weights is None else upload(weights))
        return self._active.to_numpy()[: int(self._counts.to_numpy()[0])]

    def run(self, x: ti.Ndarray, threshold: float, weights: ti.Ndarray | None = None) -> None:
        """Launch, without waiting for the device."""
        self._counts.fill(0)
        weighted = int(weights is not None)
        self._kernel(x, x if weights is None else weights, weighted, threshold, self._active, self._counts)
