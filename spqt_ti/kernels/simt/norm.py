"""RMSNorm by one group: x * w / sqrt(mean(x^2) + eps)."""

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import SHARED, group_sum


def make_norm(size: int, threads: int, eps: float):
    """Build the ti.func that normalises a[source : source + size] to a[target:], with the weights at a[weight:].

    Thread t reads and writes the values t * run .. t * run + run - 1 (run = ceil(size / threads)) and no others.
    """
    run = -(-size // threads)

    @ti.func
    def norm(a: ti.template(), source, weight, target, t):
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        squares = 0.0
        for k in range(run):
            i = t * run + k
            if i < size:
                squares += a[source + i] * a[source + i]
        factor = 1.0 / ti.sqrt(group_sum(shared, t, squares, threads) / size + eps)
        for k in range(run):
            i = t * run + k
            if i < size:
                a[target + i] = (a[source + i] * factor) * a[weight + i]

    return norm
