"""The fast Hadamard transform of a vector, in two passes that workers share: Sylvester's of each of its runs, then
every vector from those at its place in all runs, by a small dense factor.

Between the passes all workers wait for one another.
"""

from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.vectors import f32x16, value
from spqt_ti.kernels.shared.geometry import LANES

_SIGNS = [[(-1.0) ** (lane & source).bit_count() for lane in range(LANES)] for source in range(LANES)]


class Runs(NamedTuple):
    """`order` runs of 2^`levels` vectors each; `factor`: first vector of the factor f32 [order, order], with the scale
    of the whole.
    """

    order: Any
    levels: Any
    factor: Any


@ti.func
def transform_lanes(v):
    """Sylvester's transform of the 16 lanes, unscaled."""
    total = f32x16(0.0)
    for source in ti.static(range(LANES)):
        total += v[source] * f32x16(*_SIGNS[source])
    return total


@ti.func
def transform_runs(a: ti.template(), x, runs: ti.template(), first, last):
    """Sylvester's transform, unscaled and in place, of runs first..last-1 of the vectors from a[x] on."""
    vectors = 1 << runs.levels
    for run in range(first, last):
        start = x + run * vectors
        for i in range(vectors):
            a[start + i] = transform_lanes(a[start + i])
        for level in range(runs.levels):
            for pair in range(vectors >> 1):
                low = start + ((pair >> level) << (level + 1)) + (pair & ((1 << level) - 1))
                u = a[low]
                v = a[low + (1 << level)]
                a[low] = u + v
                a[low + (1 << level)] = u - v


@ti.func
def combine_runs(a: ti.template(), x, target, constants: ti.template(), runs: ti.template(), first, last):
    """Vectors first..last-1 of the result, at a[target], of the transformed runs from a[x] on."""
    for i in range(first, last):
        row = runs.factor * LANES + (i >> runs.levels) * runs.order
        place = x + (i & ((1 << runs.levels) - 1))
        total = f32x16(0.0)
        for run in range(runs.order):
            total += value(constants, row + run) * a[place + (run << runs.levels)]
        a[target + i] = total
