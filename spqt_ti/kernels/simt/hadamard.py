"""The fast Hadamard transform of a vector on GPUs, in two tasks: groups transform blocks of whole runs in memory that
they share, then every value is made of those at its place in all runs, by a small dense factor.
"""

from dataclasses import dataclass

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import SHARED, log2

BLOCK = SHARED  # values of a group
BLOCK_THREADS = 256


@dataclass(frozen=True)
class Runs:
    """`order` runs of `run` values, a power of two up to BLOCK. `factor`: first value of the factor f32 [order, order],
    with the scale of the whole.
    """

    order: int
    run: int
    factor: int

    @property
    def blocks(self) -> int:
        """Groups of the first task."""
        return -(-self.order * self.run // BLOCK)


def make_transform_block(runs: Runs):
    """Build the ti.func (shared f32 [BLOCK], t): Sylvester's transform, unscaled and in place, of a block's runs, by
    BLOCK_THREADS threads that have written it, entry by entry, before.
    """

    @ti.func
    def transform_block(shared: ti.template(), t):
        for level in ti.static(range(log2(runs.run))):
            ti.simt.block.sync()
            for part in ti.static(range(BLOCK // 2 // BLOCK_THREADS)):
                pair = part * BLOCK_THREADS + t
                low = ((pair >> level) << (level + 1)) + (pair & ((1 << level) - 1))
                u = shared[low]
                v = shared[low + (1 << level)]
                shared[low] = u + v
                shared[low + (1 << level)] = u - v
        ti.simt.block.sync()

    return transform_block


def make_combine_runs(runs: Runs):
    """Build the ti.func (a, source, i): value i of the result, of the transformed runs from a[source] on."""
    run_log2 = log2(runs.run)

    @ti.func
    def combine_runs(a: ti.template(), source, i):
        row = runs.factor + (i >> run_log2) * runs.order
        place = source + (i & (runs.run - 1))
        total = 0.0
        for run in range(runs.order):
            total += a[row + run] * a[place + run * runs.run]
        return total

    return combine_runs
