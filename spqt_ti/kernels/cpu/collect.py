"""Index collection: which inputs are active, in ascending order.

The set is exactly {i : |x_i| > threshold}, or with weights {i : |x_i| * weight_i > threshold}: NaN and -0 are
inactive, an input equal to the threshold is inactive.
"""

import functools

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, ti
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.vectors import array_of, f32x16, vectors_for


def make_collect():
    """Build the ti.funcs (x, x_base, vectors, threshold, active, active_address, active_base), which returns the number
    of active inputs, and (x, x_base, weights, weights_base, ...), the same of |x| times weights[weights_base...].

    They write the active indices of the vectors x[x_base : x_base + vectors] to `active`, at this address, from
    `active_base`. Branch-free: indices are written wherever they may belong and the end advances only past active
    ones, so 16 * vectors + 1 entries from there on are scratch.
    """
    native16 = native.load_vnni()
    compresses = native16 is not None

    @ti.func
    def append(score, first, threshold, active: ti.template(), at: ti.template(), count: ti.template()):
        if ti.static(not compresses):
            flags = ti.select(score > threshold, 1, 0)
            for lane in ti.static(range(16)):
                active[count] = first + lane
                count += flags[lane]
        else:
            v = score
            least = threshold
            number = first
            native16.append_above(v, least, number, at)

    @ti.func
    def number_of(active_base, begin, at, count):
        number = count - active_base
        if ti.static(compresses):
            number = ti.cast((at - begin) >> 2, ti.i32)
        return number

    @ti.func
    def collect(x: ti.template(), x_base, vectors, threshold, active: ti.template(), active_address, active_base):
        begin = active_address + (ti.cast(active_base, ti.i64) << 2)
        at = begin
        count = active_base
        for i in range(vectors):
            v = x[x_base + i]
            append(ti.max(v, 0.0 - v), i * 16, threshold, active, at, count)
        return number_of(active_base, begin, at, count)

    @ti.func
    def collect_weighted(
        x: ti.template(), x_base, weights: ti.template(), weights_base, vectors, threshold, active: ti.template(),
        active_address, active_base,
    ):  # fmt: skip
        begin = active_address + (ti.cast(active_base, ti.i64) << 2)
        at = begin
        count = active_base
        for i in range(vectors):
            v = x[x_base + i]
            append(ti.max(v, 0.0 - v) * weights[weights_base + i], i * 16, threshold, active, at, count)
        return number_of(active_base, begin, at, count)

    return collect, collect_weighted


@functools.cache
def make_collect_kernel():
    """Collection as a kernel of its own."""
    collect, collect_weighted = make_collect()

    @ti.kernel
    def collect_once(
        x: array_of(f32x16), weights: array_of(f32x16), weighted: ti.i32, vectors: ti.i32, threshold: ti.f32,
        active: array_of(ti.i32), active_address: ti.i64,
    ) -> ti.i32:  # fmt: skip
        count = 0
        ti.loop_config(block_dim=1, serialize=True)
        for _ in range(1):
            if weighted == 1:
                count = collect_weighted(x, 0, weights, 0, vectors, threshold, active, active_address, 0)
            else:
                count = collect(x, 0, vectors, threshold, active, active_address, 0)
        return count

    return collect_once


def collect_active(x: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Active list (i32, ascending) of x (f32 [n]), weighted by `weights` (f32 [n]).

    Raises ValueError for a negative threshold or one that is not a number, and for weights of another shape.
    """
    if weights is not None and weights.shape != x.shape:
        raise ValueError(f"weights have shape {weights.shape}, expected {x.shape}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more, not {threshold}")
    padded = max(1, vectors_for(x.size))
    vectors = ndarray(f32x16, (padded,))
    active = ndarray(ti.i32, (padded * 16 + 1,))
    host_view(vectors).reshape(-1)[:] = 0  # padding is inactive
    host_view(vectors).reshape(-1)[: x.size] = x
    factors = vectors if weights is None else ndarray(f32x16, (padded,))
    if weights is not None:
        host_view(factors).reshape(-1)[:] = 0
        host_view(factors).reshape(-1)[: x.size] = weights
    weighted = int(weights is not None)
    count = make_collect_kernel()(vectors, factors, weighted, padded, threshold, active, address(active))
    return host_view(active)[:count].copy()
