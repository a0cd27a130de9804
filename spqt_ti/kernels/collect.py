"""Index collection: which inputs are active, in ascending order.

The set is exactly {i : |x_i| > threshold}, or with weights {i : |x_i| * weight_i > threshold}: NaN and -0 are
inactive, an input equal to the threshold is inactive.
"""

import numpy as np

from spqt_ti.backend import host_view, ti
from spqt_ti.kernels.vectors import array_of, f32x16, vectors_for


@ti.func
def collect(x: ti.template(), x_base, vectors, threshold, active: ti.template(), active_base):
    """Write the active indices of the vectors x[x_base : x_base + vectors] to `active` from `active_base`; return
    their number.

    Branch-free: every index is written and the place advances only past active ones, so one entry beyond the last is
    scratch.
    """
    count = active_base
    for i in range(vectors):
        v = x[x_base + i]
        flags = ti.select(ti.max(v, 0.0 - v) > threshold, 1, 0)
        for lane in ti.static(range(16)):
            active[count] = i * 16 + lane
            count += flags[lane]
    return count - active_base


@ti.func
def collect_weighted(
    x: ti.template(), x_base, weights: ti.template(), weights_base, vectors, threshold, active: ti.template(),
    active_base,
):  # fmt: skip
    """As `collect`, of |x| times the vectors weights[weights_base : weights_base + vectors]."""
    count = active_base
    for i in range(vectors):
        v = x[x_base + i]
        flags = ti.select(ti.max(v, 0.0 - v) * weights[weights_base + i] > threshold, 1, 0)
        for lane in ti.static(range(16)):
            active[count] = i * 16 + lane
            count += flags[lane]
    return count - active_base


@ti.kernel
def _collect(
    x: array_of(f32x16), weights: array_of(f32x16), weighted: ti.i32, vectors: ti.i32, threshold: ti.f32,
    active: array_of(ti.i32),
) -> ti.i32:  # fmt: skip
    count = 0
    ti.loop_config(block_dim=1, serialize=True)
    for _ in range(1):
        if weighted == 1:
            count = collect_weighted(x, 0, weights, 0, vectors, threshold, active, 0)
        else:
            count = collect(x, 0, vectors, threshold, active, 0)
    return count


def collect_active(x: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Active list (i32, ascending) of x (f32 [n]), weighted by `weights` (f32 [n]).

    Raises ValueError for a negative threshold or one that is not a number, and for weights of another shape.
    """
    if weights is not None and weights.shape != x.shape:
        raise ValueError(f"weights have shape {weights.shape}, expected {x.shape}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be 0 or more, not {threshold}")
    padded = max(1, vectors_for(x.size))
    vectors = ti.ndarray(f32x16, (padded,))
    active = ti.ndarray(ti.i32, (padded * 16 + 1,))
    host_view(vectors).reshape(-1)[:] = 0  # padding is inactive
    host_view(vectors).reshape(-1)[: x.size] = x
    factors = vectors if weights is None else ti.ndarray(f32x16, (padded,))
    if weights is not None:
        host_view(factors).reshape(-1)[:] = 0
        host_view(factors).reshape(-1)[: x.size] = weights
    count = _collect(vectors, factors, int(weights is not None), padded, threshold, active)
    return host_view(active)[:count].copy()
