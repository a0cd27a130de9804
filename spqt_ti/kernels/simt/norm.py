"""RMSNorm: x * w / sqrt(mean(x^2) + eps), by one group, or by several in two tasks: the sums of squares of each group's
values, then their sum in each of the groups that need it.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import SHARED, group_sum

NORM_GROUP = 128  # values, and threads, of a group that sums squares up


def norm_groups(size: int) -> int:
    """Groups that sum up the squares of so many values."""
    return -(-size // NORM_GROUP)


def make_norm_factor(size: int, threads: int, eps: float):
    """Build the ti.func that gives every thread t of a group the factor of a norm, from the groups' sums of squares at
    a[squares:]. `shared`: f32 [threads].
    """
    groups = norm_groups(size)

    @ti.func
    def norm_factor(a: ti.template(), squares, shared: ti.template(), t):
        total, group = 0.0, t
        while group < groups:
            total += a[squares + group]
            group += threads
        return 1.0 / ti.sqrt(group_sum(shared, t, total, threads) / size + eps)

    return norm_factor


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
