"""The phases of a token's feed-forward network with a neuron predictor: predict, list, gate rows, up rows, activation.

`d` is the Launch of the decode kernel. Between `project`, `predict` and the rest all workers wait for one another.
"""

from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.collect import make_collect
from spqt_ti.kernels.cpu.factors import Factor, make_factor_product
from spqt_ti.kernels.cpu.row_gemv import make_listed_rows
from spqt_ti.kernels.cpu.row_layout import X_VECTORS, ListedRows, RowInputs, RowMatrix
from spqt_ti.kernels.cpu.vectors import exp_lanes, f32x16, value
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.model.cpu.maps import ChunkMap, IntegerMap, Scratch, site_row
from spqt_ti.model.cpu.matrix_maps import Kind
from spqt_ti.model.cpu.neuron_map import NeuronMap
from spqt_ti.model.cpu.products import make_kept
from spqt_ti.model.cpu.weights import SiteField, WeightMap
from spqt_ti.model.sites import SITE_COUNT, Site


class NeuronPhases(NamedTuple):
    """The ti.funcs, in the order in which a token meets them. `index`: of the layer's predictor.

    `apply_factor(d, layer, index, stage, x)`: stage 0 is the worker's part of fc1 x, x beginning at vector a[x]; it
    also clears its share of the activation. Stage 1 is its share of max(fc2 (fc1 x) + bias, 0), to scratch.predicted.
    `multiply_rows(d, layer, index, x)`: the list of predicted neurons, and of the worker's share of it gate rows, up
    rows (of those whose activation is not zero, unless integer `parallel` is 1), and the activation, input of down. An
    index below 0: all rows of all neurons.
    """

    apply_factor: Any
    multiply_rows: Any


def make_apply_factor(neurons: NeuronMap, workers: int):
    """Build the ti.func (d, index, stage, x, y, worker): fc1 (stage 0) or fc2 of the predictor `index` times the
    vectors a[x...], to a[y...]; of fc1 a worker's part.
    """
    multiply = make_factor_product(workers)
    tiles, blocks = (neurons.code_tiles, neurons.neuron_tiles), (neurons.hidden // 32, neurons.rank // 32)

    @ti.func
    def apply_factor(d: ti.template(), index, stage, x, y, worker):
        words = neurons.words + index * neurons.words_stride + stage * neurons.fc2_words
        scales = neurons.scales + index * neurons.scales_stride + stage * neurons.fc2_scales
        height = ti.select(stage == 0, tiles[0], tiles[1])
        width = ti.select(stage == 0, blocks[0], blocks[1])
        multiply(ti.static(Factor(d.words, words, d.scales, scales, height, width)), stage, d.a, x, d.a, y, worker)

    return apply_factor


def make_neuron_phases(
    neurons: NeuronMap, weights: WeightMap, scratch: Scratch, ints: IntegerMap, workers: int, exact: bool, mark
):  # fmt: skip
    """Build the NeuronPhases of a model; `mark(clock, part)` is told when the list (0), gate and up rows are done."""
    apply = make_apply_factor(neurons, workers)
    collect, _ = make_collect()
    activate = make_activate(weights.config.hidden_act, exp_lanes)
    intermediate = weights.config.intermediate_size
    width, tiles, code_vectors = intermediate // 16, neurons.neuron_tiles, 4 * neurons.code_tiles
    kinds = weights.matrices.kinds
    numbers = sorted({kinds.index(layer[Site.GATE_UP].kind) for layer in weights.matrices.sites} & row_kinds(kinds))
    products = [make_listed_rows(exact, kinds[number].decoder) for number in numbers]
    orders, multiplies = [order for order, _ in products], [multiply for _, multiply in products]
    constants_stride, first_bias = weights.constants_stride, weights.neuron_biases
    has_bias = weights.layer_constant("gate_up_bias") is not None
    to_ups, kept_inputs = scratch.ups - scratch.gates, make_kept(weights)

    @ti.func
    def add_codes(d: ti.template(), code):
        """fc1 x, at vector a[code]: the workers' parts in worker order."""
        for i in range(code_vectors):
            total = d.a[scratch.codes + i]
            for w in range(1, workers):
                total += d.a[scratch.codes + w * code_vectors + i]
            d.a[code + i] = total

    @ti.func
    def apply_factor(d: ti.template(), layer, index, stage, x):
        source, target = x, scratch.codes + d.worker * code_vectors
        if stage == 0:
            for i in range(share_start(width, d.worker, workers), share_start(width, d.worker + 1, workers)):
                d.a[scratch.activation + i] = f32x16(0.0)
        else:
            source, target = scratch.code + d.worker * code_vectors, scratch.predicted
            add_codes(d, source)
        apply(d, index, stage, source, target, d.worker)
        if stage == 1:
            first, last = share_start(tiles, d.worker, workers) * 4, share_start(tiles, d.worker + 1, workers) * 4
            for i in range(first, ti.min(last, width)):
                guess = d.a[scratch.predicted + i] + d.constants[first_bias + layer * width + i]
                d.a[scratch.predicted + i] = ti.max(guess, 0.0)

    @ti.func
    def order_inputs(d: ti.template(), layer, at, index, x):
        """x, at vector a[x], in the order of the rows' lanes; without predictor what the selector keeps of it."""
        vectors = d.integers[at + SiteField.COLS] >> 4
        superblocks = (vectors + X_VECTORS - 1) // X_VECTORS
        padded = scratch.masked + d.worker * scratch.masked_stride
        for i in range(vectors):
            v = d.a[x + i]
            if index < 0:
                v = kept_inputs(d.constants, layer * SITE_COUNT + Site.GATE_UP, v, i)
            d.a[padded + i] = v
        for i in range(vectors, superblocks * X_VECTORS):
            d.a[padded + i] = f32x16(0.0)
        inputs = ti.static(RowInputs(d.a, padded, 0.0))
        order = scratch.rows + d.worker * scratch.rows_stride
        for k in ti.static(range(len(numbers))):
            if d.integers[at + SiteField.KIND] == numbers[k]:
                orders[k](inputs, superblocks, d.a, order)

    @ti.func
    def multiply_listed(d: ti.template(), layer, at, first, count, offset, y):
        """Rows of gate_up that the list at integer `first` has, plus `offset`, with their biases, to the vectors
        a[y...].
        """
        superblocks = (d.integers[at + SiteField.COLS] + 255) >> 8
        quants = d.integers[at + SiteField.QUANTS]
        headers = d.integers[at + SiteField.HEADERS]
        matrix = ti.static(
            RowMatrix(d.quants, quants, d.headers, headers, d.quants_address, d.headers_address, 0, superblocks)
        )
        order = scratch.rows + d.worker * scratch.rows_stride
        listed = ti.static(ListedRows(d.integers, first, count, offset))
        for k in ti.static(range(len(numbers))):
            if d.integers[at + SiteField.KIND] == numbers[k]:
                multiplies[k](matrix, d.a, order, listed, d.a, y)
        if ti.static(has_bias):
            bias = (layer * constants_stride + d.integers[at + SiteField.BIAS]) * 16 + offset
            for k in range(count):
                v = y + (k >> 4)
                d.a[v][k & 15] = d.a[v][k & 15] + value(d.constants, bias + d.integers[first + k])

    @ti.func
    def keep_surviving(d: ti.template(), rows, survivors, count, gates):
        """Of `count` neurons listed at integer `rows`, with their gate rows at vector a[gates], move those whose
        activation is not zero to the front, and list them at integer `survivors`; returns their number.
        """
        vectors = (count + 15) // 16
        for i in range(vectors):
            d.a[gates + to_ups + i] = activate(d.a[gates + i], f32x16(1.0))
        kept = collect(d.a, gates + to_ups, vectors, 0.0, d.integers, d.integers_address, survivors)
        for k in range(kept):
            number = d.integers[survivors + k]
            gate = value(d.a, gates * 16 + number)
            d.a[gates + (k >> 4)][k & 15] = gate
            d.integers[survivors + k] = d.integers[rows + number]
        return kept

    @ti.func
    def multiply_rows(d: ti.template(), layer, index, x):
        at = site_row(layer, Site.GATE_UP)
        order_inputs(d, layer, at, index, x)
        count, listed = 0 + intermediate, 0 + ints.everything
        if index >= 0:
            listed = ints.lists + d.worker * ints.list_stride
            count = collect(d.a, scratch.predicted, width, 0.0, d.integers, d.integers_address, listed)
            mark(d.clock, 0)
        first = share_start(count, d.worker, workers)
        kept = share_start(count, d.worker + 1, workers) - first
        rows = listed + first
        gates = scratch.gates + d.worker * scratch.gates_stride
        for part in range(2):  # at run time: the product compiles once
            if part == 1 and index >= 0 and d.integers[ints.parallel] == 0:
                survivors = ints.survivors + d.worker * ints.list_stride
                kept = keep_surviving(d, rows, survivors, kept, gates)
                rows = survivors
            multiply_listed(d, layer, at, rows, kept, part * intermediate, gates + part * to_ups)
            mark(d.clock, 1 + part)
        for i in range((kept + 15) // 16):
            d.a[gates + i] = activate(d.a[gates + i], d.a[gates + to_ups + i])
        for k in range(kept):
            neuron, result = d.integers[rows + k], value(d.a, gates * 16 + k)
            d.a[scratch.activation + (neuron >> 4)][neuron & 15] = result
        if index >= 0:
            if d.worker == 0:
                d.integers[ints.neurons + layer * 2] += count
            ti.atomic_add(d.integers[ints.neurons + layer * 2 + 1], kept)

    return NeuronPhases(apply_factor, multiply_rows)


def make_zero_off(neurons: NeuronMap, weights: WeightMap, chunk: ChunkMap):
    """Build the ti.func (d, index, x, y), of prefill's Launch, that zeroes of a token's activations, vectors a[y...],
    those of the neurons that the predictor `index` says are off for the input at a[x].
    """
    apply = make_apply_factor(neurons, 1)
    code_vectors, predicted_vectors = 4 * neurons.code_tiles, 4 * neurons.neuron_tiles
    width, first_bias = neurons.intermediate // 16, weights.neuron_biases

    @ti.func
    def zero_off(d: ti.template(), index, x, y):
        code, predicted = chunk.codes + d.worker * code_vectors, chunk.predicted + d.worker * predicted_vectors
        for stage in range(2):
            source = ti.select(stage == 0, x, code)
            target = ti.select(stage == 0, code, predicted)
            apply(d, index, stage, source, target, 0)
        for i in range(width):
            guess = d.a[predicted + i] + d.constants[first_bias + d.layer * width + i]
            d.a[y + i] = ti.select(guess > 0.0, d.a[y + i], f32x16(0.0))

    return zero_off


def row_kinds(kinds: tuple[Kind, ...]) -> set[int]:
    """Numbers of the kinds in the row layout."""
    return {number for number, kind in enumerate(kinds) if kind.rows}
