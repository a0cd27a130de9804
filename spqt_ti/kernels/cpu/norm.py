"""RMSNorm: x * w / sqrt(mean(x^2) + eps)."""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.vectors import f32x16, lane_sum


@ti.func
def square_sum(a: ti.template(), first, last):
    """Sum of squares of the vectors first..last-1 of `a`."""
    total = f32x16(0.0)
    for i in range(first, last):
        total += a[i] * a[i]
    return lane_sum(total)


@ti.func
def scaled_copy(a: ti.template(), source, weights: ti.template(), weight, factor, target, vectors):
    """a[target + i] = a[source + i] * factor * weights[weight + i] for `vectors` vectors."""
    for i in range(vectors):
        a[target + i] = (a[source + i] * factor) * weights[weight + i]
