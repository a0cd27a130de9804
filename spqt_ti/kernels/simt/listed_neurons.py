"""Gate and up rows of listed neurons on GPUs: activation(gate x, up x) of these alone, for one token.

Gate and up are one matrix in the row layout, gate's rows first. A simdgroup has a neuron: its gate row, then, where the
activation is not zero, its up row; or both at once. The simdgroups of all groups take turns in the order of the list,
so their shares differ by at most one neuron. A row's product is that of the dense GEMV, bit for bit.
"""

from typing import Any, NamedTuple

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.kernels.simt.active_list import ActiveList, Segments, make_list_reader, spread
from spqt_ti.kernels.simt.collect import Inputs, Rule
from spqt_ti.kernels.simt.division import ENOUGH_GROUPS, LANES
from spqt_ti.kernels.simt.groups import SHARED, array_of, log2
from spqt_ti.kernels.simt.row_gemv import THREADS, make_row_dot, simdgroup_sum
from spqt_ti.kernels.simt.row_words import ROWS, RowWords
from spqt_ti.kernels.simt.schemes.decoder import Matrix, words4
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import upload, zeros


class NeuronOutputs(NamedTuple):
    """Where the results of neurons go: arrays of f32 with an offset each, of the activation, and of 1 where the up row
    was read, else 0.
    """

    activation: Any
    activation_at: Any
    read: Any
    read_at: Any


def listed_threads(neurons: int) -> int:
    """Threads of the task, whatever the length of the list."""
    return min(-(-neurons // ROWS), ENOUGH_GROUPS) * THREADS


def make_listed_neurons(shape: RowWords, segments: Segments, activate: Any, parallel: bool, has_bias: bool):
    """Build the ti.func of thread i of `listed_threads(neurons)`, in groups of THREADS, for a matrix [2 neurons, cols].

    Arguments: i; the matrix; the inputs x; the list of neurons, in these segments; an array and the offset of the
    biases [2 neurons] in it, not looked at without `has_bias`; the NeuronOutputs, which neurons that are not listed
    leave as they are. `parallel`: both rows of every listed neuron.
    """
    neurons = shape.rows // 2
    row_dot, threads_log2 = make_row_dot(shape, False), log2(THREADS)
    sum_lengths, segment_of, place_of = make_list_reader(segments, THREADS)
    stride = listed_threads(neurons) // THREADS * ROWS

    @ti.func
    def listed_neurons(
        i, matrix: ti.template(), inputs: ti.template(), active: ti.template(), biases: ti.template(), biases_at,
        outputs: ti.template(),
    ):  # fmt: skip
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        starts = ti.simt.block.SharedArray((SHARED,), ti.i32)
        t = i & (THREADS - 1)
        lane = t & (LANES - 1)
        rule = ti.static(Rule(-1.0, inputs.values, 0, False))
        count = sum_lengths(active, starts, t)
        first = (i >> threads_log2) * ROWS
        while first < count:  # the same for all of the group
            k = first + (t >> 5)
            neuron, listed = 0, 0
            if k < count:
                segment = segment_of(starts, k)
                place = place_of(starts, segment, k)
                neuron, listed = active.integers[active.entries + place], 1
            gate = simdgroup_sum(shared, t, row_dot(matrix, neuron, listed, inputs, rule, shared, t))
            if ti.static(has_bias):
                gate += biases[biases_at + neuron]
            survives = 0
            if listed == 1 and activate(gate, 1.0) != 0.0:
                survives = 1
            wanted = survives
            if ti.static(parallel):
                wanted = listed
            up = simdgroup_sum(shared, t, row_dot(matrix, neuron + neurons, wanted, inputs, rule, shared, t))
            if ti.static(has_bias):
                up += biases[biases_at + neurons + neuron]
            if lane == 0 and listed == 1:
                result = 0.0
                if survives == 1:
                    result = activate(gate, up)
                outputs.activation[outputs.activation_at + neuron] = result
                outputs.read[outputs.read_at + neuron] = ti.select(survives == 1 or parallel, 1.0, 0.0)
            first += stride

    return listed_neurons


class ListedNeurons:
    """Gate and up (u8 [nbytes], row layout) with the task as a kernel of its own, for tests."""

    def __init__(self, data: np.ndarray, shape: RowWords, function: str, parallel: bool) -> None:
        self._neurons, self._segments = shape.rows // 2, spread(shape.rows // 2)
        quants, headers = shape.unpack(data)
        self._arrays = {"quants": upload(quants), "headers": upload(headers)}
        self._kernel = self._make_kernel(shape, function, parallel)

    def _make_kernel(self, shape: RowWords, function: str, parallel: bool):
        neurons, threads = self._neurons, listed_threads(self._neurons)
        activate = make_activate(function, ti.exp)
        listed_neurons = make_listed_neurons(shape, self._segments, activate, parallel, True)

        @ti.kernel
        def multiply(
            quants: array_of(words4), headers: array_of(words4), x: array_of(ti.f32), integers: array_of(ti.i32),
            biases: array_of(ti.f32), y: array_of(ti.f32),
        ):  # fmt: skip
            ti.loop_config(block_dim=THREADS)
            for i in range(threads):
                matrix = ti.static(Matrix(quants, 0, headers, 0))
                active = ti.static(ActiveList(integers, 0, neurons))
                outputs = ti.static(NeuronOutputs(y, 0, y, neurons))
                listed_neurons(i, matrix, ti.static(Inputs(x, 0)), active, biases, 0, outputs)

        return multiply

    def __call__(self, x: np.ndarray, listed: np.ndarray, biases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Activation f32 [neurons] of x (f32 [cols]), 0 for neurons that are not listed (i32, ascending), and which up
        rows were read, bool [neurons]. `biases`: f32 [2 neurons].
        """
        integers = np.zeros(self._neurons + self._segments.count, np.int32)
        for segment in range(self._segments.count):
            first = segment * self._segments.length
            part = listed[(listed >= first) & (listed < first + self._segments.length)]
            integers[first : first + part.size], integers[self._neurons + segment] = part, part.size
        arrays = self._arrays | {
            "x": upload(x), "integers": upload(integers), "biases": upload(biases), "y": zeros(ti.f32, biases.size),
        }  # fmt: skip
        Submission([Launch(self._kernel, tuple(arrays))], arrays, graph=False).submit()
        y = arrays["y"].to_numpy()
        return y[: self._neurons], y[self._neurons :] == 1.0
