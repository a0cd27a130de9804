"""Feed-forward networks by neuron predictors on a GPU: `predict_neurons` and `run_neurons`, a layer's tasks after its
attention, and `mask_neurons`, which zeroes what neurons that are off put into down in a prompt.

The six tasks of a token: fc1; fc2 with bias; the list of predicted neurons; their gate and up rows; the list of those
that are on; down over these. Nothing is atomic, so a result repeats bit for bit.
"""

from spqt_ti.backend import ti
from spqt_ti.errors import BackendError
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.kernels.shared.geometry import TILE_ROWS
from spqt_ti.kernels.simt.active_list import SEGMENT, ActiveList
from spqt_ti.kernels.simt.collect import Inputs, Rule, make_collect_segment
from spqt_ti.kernels.simt.division import LANES
from spqt_ti.kernels.simt.groups import SHARED, array_of, group_sum, log2
from spqt_ti.kernels.simt.head import THREADS as TILE_THREADS
from spqt_ti.kernels.simt.head import Tiles, make_tile_product
from spqt_ti.kernels.simt.listed_neurons import NeuronOutputs, listed_threads, make_listed_neurons
from spqt_ti.kernels.simt.row_gemv import THREADS as ROW_THREADS
from spqt_ti.kernels.simt.row_gemv import make_row_dot, row_gemv_threads, simdgroup_sum
from spqt_ti.kernels.simt.row_words import ROWS, RowWords
from spqt_ti.kernels.simt.schemes.decoder import Matrix, words4
from spqt_ti.model.constants import Constants
from spqt_ti.model.engine import CHUNK
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.simt.maps import FloatMap, IntegerMap
from spqt_ti.model.simt.neuron_arrays import NeuronMap
from spqt_ti.model.simt.site_tasks import make_site_tasks
from spqt_ti.model.simt.weights import WeightMap
from spqt_ti.model.sites import Site

_TOKENS = 16  # of a prompt that a group goes through
_PARTS = CHUNK // _TOKENS


def make_guess(neurons: NeuronMap):
    """Build the ti.funcs `encode` (group and thread of ROW_THREADS: its four rows of fc1 x, to guesses[code:]) and
    `guess` (thread t of a tile's group: for t < 64 what fc2 and bias make of guesses[code:], for the others 0).
    `shared`: f32 [SHARED].
    """
    row_dot, tile_product, fc1 = make_row_dot(neurons.fc1, False), make_tile_product(neurons.rank), neurons.fc1

    @ti.func
    def encode(
        group, t, quants: ti.template(), headers: ti.template(), index, x: ti.template(), guesses: ti.template(), code,
        shared: ti.template(),
    ):  # fmt: skip
        quants_at, headers_at = index * fc1.quants, index * fc1.headers
        matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
        row, lane = group * ROWS + (t >> 5), t & (LANES - 1)
        part = row_dot(matrix, row, 1, x, ti.static(Rule(-1.0, x.values, 0, False)), shared, t)
        total = simdgroup_sum(shared, t, part)
        if lane == 0:
            guesses[code + row] = total

    @ti.func
    def guess(
        words: ti.template(), scales: ti.template(), index, tile, guesses: ti.template(), code, shared: ti.template(), t
    ):  # fmt: skip
        first = index * neurons.tiles
        total = tile_product(ti.static(Tiles(words, scales, first)), tile, guesses, code, shared, t)
        if t < TILE_ROWS:
            total += guesses[index * neurons.padded + tile * TILE_ROWS + t]
        return total

    return encode, guess


def make_predict_neurons(floats: FloatMap, neurons: NeuronMap):
    """Build the kernel that computes max(fc2 (fc1 x) + bias, 0) of a token's x, to guesses[neurons.guess:]. `index`: of
    the layer's predictor.
    """
    (encode, guess), encode_threads = make_guess(neurons), row_gemv_threads(neurons.fc1)
    tile_log2, row_log2 = log2(TILE_THREADS), log2(ROW_THREADS)

    @ti.kernel
    def predict_neurons(
        a: array_of(ti.f32), fc1_quants: array_of(words4), fc1_headers: array_of(words4), fc2_words: array_of(ti.u32),
        fc2_scales: array_of(ti.u32), guesses: array_of(ti.f32), index: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=ROW_THREADS)
        for i in range(encode_threads):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            group, t = i >> row_log2, i & (ROW_THREADS - 1)
            x = ti.static(Inputs(a, floats.x))
            encode(group, t, fc1_quants, fc1_headers, index, x, guesses, neurons.code, shared)
        ti.loop_config(block_dim=TILE_THREADS)
        for i in range(neurons.tiles * TILE_THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            tile, t = i >> tile_log2, i & (TILE_THREADS - 1)
            total = guess(fc2_words, fc2_scales, index, tile, guesses, neurons.code, shared, t)
            if t < TILE_ROWS:
                guesses[neurons.guess + tile * TILE_ROWS + t] = ti.max(total, 0.0)

    return predict_neurons


def make_run_neurons(
    weight_map: WeightMap, constants: Constants, selectors: SelectorMap, floats: FloatMap, ints: IntegerMap,
    neurons: NeuronMap, parallel: bool,
):  # fmt: skip
    """Build the kernel of a layer's feed-forward network after `predict_neurons`. `parallel`: the executor.

    Raises BackendError where gate and up are not in the row layout.
    """
    config, span = weight_map.config, weight_map.spans[0]
    width, tasks = span.width, make_site_tasks(span, selectors, floats, ints)
    collect, multiply, threads, block_dims = tasks.collect, tasks.multiply, tasks.threads, tasks.groups
    segments, gate_up = tasks.segments[Site.DOWN], span.matrices[Site.GATE_UP.label]
    activate = make_activate(config.hidden_act, ti.exp, config.hidden_act_param, config.architecture.activates_up)
    bias = constants.layer.get(f"{Site.GATE_UP.label}_bias", -1)
    if not isinstance(gate_up.shape, RowWords):
        raise BackendError("neuron predictors skip rows of gate and up: quantise with --layout zigzag,gate_up=row")
    listed_neurons = make_listed_neurons(gate_up.shape, segments, activate, parallel, bias >= 0)
    collect_segment, row_threads = make_collect_segment(segments, SEGMENT), listed_threads(width)
    per_thread, segment_log2 = segments.length // SEGMENT, log2(SEGMENT)

    @ti.kernel
    def run_neurons(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), integers: array_of(ti.i32),
        guesses: array_of(ti.f32), rows_read: array_of(ti.i32), layer: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=SEGMENT)
        for i in range(segments.count * SEGMENT):
            shared = ti.simt.block.SharedArray((SHARED,), ti.i32)
            segment, t = i >> segment_log2, i & (SEGMENT - 1)
            for k in range(per_thread):
                j = i * per_thread + k
                if j < width:
                    a[floats.activation + j] = 0.0
                    guesses[neurons.read + j] = 0.0
            first = neurons.guess + segment * segments.length
            active = ti.static(ActiveList(integers, ints.active, ints.lengths))
            rule = ti.static(Rule(0.0, guesses, 0, False))
            collect_segment(ti.static(Inputs(guesses, first)), segment, rule, active, shared, t)
            if t == 0:
                counted = layer * 2 * segments.count + segment
                rows_read[counted] = rows_read[counted] + integers[ints.lengths + segment]
        ti.loop_config(block_dim=ROW_THREADS)
        for i in range(row_threads):
            quants_at = layer * span.quants_stride + (span.quants + gate_up.quants)
            headers_at = layer * span.headers_stride + (span.headers + gate_up.headers)
            matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
            active = ti.static(ActiveList(integers, ints.active, ints.lengths))
            outputs = ti.static(NeuronOutputs(a, floats.activation, guesses, neurons.read))
            biases = floats.constants + layer * constants.stride + bias
            listed_neurons(i, matrix, ti.static(Inputs(a, floats.x)), active, a, biases, outputs)
        ti.loop_config(block_dim=SEGMENT)
        for i in range(segments.count * SEGMENT):
            shared = ti.simt.block.SharedArray((SHARED,), ti.i32)
            segment, t = i >> segment_log2, i & (SEGMENT - 1)
            read = 0
            for k in range(per_thread):
                j = i * per_thread + k
                if j < width:
                    read += ti.select(guesses[neurons.read + j] > 0.0, 1, 0)
            total = group_sum(shared, t, read, SEGMENT)
            if t == 0:
                counted = (layer * 2 + 1) * segments.count + segment
                rows_read[counted] = rows_read[counted] + total
            first = floats.activation + segment * segments.length
            collect(a, first, a, integers, layer, Site.DOWN, segment, t, -1.0)
        ti.loop_config(block_dim=block_dims[Site.DOWN])
        for i in range(threads[Site.DOWN]):
            multiply(i, quants, headers, a, integers, layer, Site.DOWN, floats.activation, -1.0)

    return run_neurons


def make_mask_neurons(floats: FloatMap, neurons: NeuronMap):
    """Build the kernel that zeroes the inputs of down, of up to CHUNK tokens, of neurons that are not predicted."""
    (encode, guess), width = make_guess(neurons), neurons.intermediate
    row_groups, tile_log2, row_log2 = neurons.rank // ROWS, log2(TILE_THREADS), log2(ROW_THREADS)

    @ti.kernel
    def mask_neurons(
        a: array_of(ti.f32), fc1_quants: array_of(words4), fc1_headers: array_of(words4), fc2_words: array_of(ti.u32),
        fc2_scales: array_of(ti.u32), guesses: array_of(ti.f32), index: ti.i32, count: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=ROW_THREADS)
        for i in range(_PARTS * row_groups * ROW_THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            group, t = i >> row_log2, i & (ROW_THREADS - 1)
            part = group // row_groups
            # The same tokens for all of the group, here and below.
            for token in range(part * _TOKENS, ti.min(part * _TOKENS + _TOKENS, count)):
                first, code = token * neurons.hidden, neurons.chunk_codes + token * neurons.rank
                x_at = floats.chunk_inputs[Site.GATE_UP] + first
                x = ti.static(Inputs(a, x_at))
                encode(group - part * row_groups, t, fc1_quants, fc1_headers, index, x, guesses, code, shared)
        ti.loop_config(block_dim=TILE_THREADS)
        for i in range(_PARTS * neurons.tiles * TILE_THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            group, t = i >> tile_log2, i & (TILE_THREADS - 1)
            part = group // neurons.tiles
            tile = group - part * neurons.tiles
            for token in range(part * _TOKENS, ti.min(part * _TOKENS + _TOKENS, count)):
                code = neurons.chunk_codes + token * neurons.rank
                total = guess(fc2_words, fc2_scales, index, tile, guesses, code, shared, t)
                neuron = tile * TILE_ROWS + t
                if t < TILE_ROWS and neuron < width and not total > 0.0:
                    a[floats.chunk_inputs[Site.DOWN] + token * width + neuron] = 0.0

    return mask_neurons
