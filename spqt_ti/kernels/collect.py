"""Index collection: which inputs are active, in ascending order.

The set is exactly {i : |x_i| > threshold}: NaN and -0 are inactive, an input equal to the threshold is inactive.
"""

import numpy as np

from spqt_ti.backend import host_view, ti
from spqt_ti.kernels.vectors import array_of, f32x16, value, vectors_for


@ti.func
def collect(x: ti.template(), x_base, size, threshold, active: ti.template(), active_base):
    """Write the active indices of x[0:size] (first vector `x_base`) to `active` from `active_base`; return their number.

    Branch-free: every index is written and the place advances only past active ones, so one entry beyond the last is scratch.
    """
    count = 0
    for i in range(size):
        active[active_base + count] = i
        count += ti.cast(ti.abs(value(x, x_base * 16 + i)) > threshold, ti.i32)
    return count


@ti.kernel
def _collect(x: array_of(f32x16), size: ti.i32, threshold: ti.f32, active: array_of(ti.i32)) -> ti.i32:
    count = 0
    ti.loop_config(block_dim=1, serialize=True)
    for _ in range(1):
        count = collect(x, 0, size, threshold, active, 0)
    return count


def collect_active(x: np.ndarray, threshold: float) -> np.ndarray:
    """Active list (i32, ascending) of x (f32 [n])."""
    vectors = ti.ndarray(f32x16, (max(1, vectors_for(x.size)),))
    active = ti.ndarray(ti.i32, (x.size + 1,))
    host_view(vectors).reshape(-1)[: x.size] = x
    count = _collect(vectors, x.size, threshold, active)
    return host_view(active)[:count].copy()
