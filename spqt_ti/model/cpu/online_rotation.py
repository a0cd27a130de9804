"""The input of down, turned when it is computed (see convert/rotate.py): in the decode step by all workers together, in
prefill by one for each token. `d` is the Launch of the kernel.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.hadamard import Runs, combine_runs, transform_runs
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.model.constants import Turn
from spqt_ti.model.cpu.maps import ChunkMap, Scratch
from spqt_ti.model.cpu.weights import WeightMap


def make_runs_of(weights: WeightMap):
    """Build the ti.func (constants, layer): order, levels and factor of Runs, which differ with a layer's width."""
    rotation, stride, factors = weights.layer_constant("rotation") or 0, weights.constants_stride, weights.factors

    @ti.func
    def runs_of(constants: ti.template(), layer):
        turn = constants[layer * stride + rotation]
        factor = factors + ti.cast(turn[int(Turn.FACTOR)], ti.i32)
        return ti.cast(turn[int(Turn.ORDER)], ti.i32), ti.cast(turn[int(Turn.LEVELS)], ti.i32), factor

    return runs_of


def make_rotate_down(weights: WeightMap, scratch: Scratch, workers: int, wait):
    """Build the ti.func (d, layer, arrived) of the decode step: to scratch.rotated; `wait(d, arrived)` for the others
    before it returns.
    """
    runs_of = make_runs_of(weights)

    @ti.func
    def rotate_down(d: ti.template(), layer, arrived: ti.template()):
        order, levels, factor = runs_of(d.constants, layer)
        runs = ti.static(Runs(order, levels, factor))
        first, last = share_start(order, d.worker, workers), share_start(order, d.worker + 1, workers)
        transform_runs(d.a, scratch.activation, runs, first, last)
        wait(d, arrived)
        vectors = order << levels
        first, last = share_start(vectors, d.worker, workers), share_start(vectors, d.worker + 1, workers)
        combine_runs(d.a, scratch.activation, scratch.rotated, d.constants, runs, first, last)
        wait(d, arrived)

    return rotate_down


def make_rotate_token(weights: WeightMap, chunk: ChunkMap):
    """Build the ti.func (d, at) of prefill: a token's input of down, which begins at vector a[at], in place."""
    runs_of = make_runs_of(weights)

    @ti.func
    def rotate_token(d: ti.template(), at):
        order, levels, factor = runs_of(d.constants, d.layer)
        runs = ti.static(Runs(order, levels, factor))
        transform_runs(d.a, at, runs, 0, order)
        rotated = chunk.rotated + d.worker * chunk.rotated_stride
        combine_runs(d.a, at, rotated, d.constants, runs, 0, order << levels)
        for i in range(order << levels):
            d.a[at + i] = d.a[rotated + i]

    return rotate_token
