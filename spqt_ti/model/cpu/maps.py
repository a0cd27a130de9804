"""Where the buffers of decode and prefill lie: each has one array of f32 x 16 vectors and one of integers.

One array instead of many, because every ndarray argument costs 4 us per launch.
"""

from dataclasses import dataclass
from enum import IntEnum

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.gemv import SCRATCH_VECTORS
from spqt_ti.kernels.cpu.matmul import scratch_vectors
from spqt_ti.kernels.cpu.row_layout import ROW_VECTORS, X_VECTORS, row_superblocks
from spqt_ti.kernels.cpu.row_matmul import ROW_TILE_VECTORS
from spqt_ti.kernels.cpu.tile_sums import WORKSPACE_INTEGERS
from spqt_ti.kernels.shared.geometry import tiles_for
from spqt_ti.model.architectures import NormRule
from spqt_ti.model.cpu.weights import SiteField, WeightMap
from spqt_ti.model.engine import CHUNK, MOST_TOKENS
from spqt_ti.model.sites import SITE_COUNT, SITES, Site

LOGIT_ROWS = 32  # tokens whose logits prefill computes at a time
# Among the integers: the barrier's counter is element 0, in a cache line of its own; then what a launch is to do, of a
# decode step TOKEN to STEPS, of prefill's layers LAYER to MASKED; then Weights.site_table.
TOKEN, POSITION, STEPS = 16, 17, 18
LAYER, START, COUNT, MASKED = 16, 17, 18, 19
SITE_TABLE = 32
SITE_STRIDE = len(SiteField)


@ti.func
def site_row(layer: ti.i32, site: ti.i32) -> ti.i32:
    """Where Weights.site_table has a matrix, among the integers."""
    return SITE_TABLE + (layer * SITE_COUNT + site) * SITE_STRIDE


class Long(IntEnum):
    """Offsets in the decode step's i64 array: addresses of arrays, then the ticks of each phase."""

    QUANTS = 0
    TAIL = 1
    HEADERS = 2
    INTEGERS = 3
    TICKS = 8


@dataclass(frozen=True)
class Scratch:
    """First vectors of the decode step's buffers in its scratch array (f32 x 16), and their sizes."""

    hidden: int  # [hidden / 16], the residual stream
    query: int  # [stacked q, k, v rows / 16]
    activation: int  # [intermediate / 16], input of down
    squares: int  # [workers], lane 0: sum of squares of a worker's share of hidden
    inputs: int  # [workers][input_stride], a worker's own copy of the current GEMV input
    input_stride: int
    partial: int  # [workers][padded rows / 16]
    gemv: int  # [workers][SCRATCH_VECTORS]
    heads: int  # [workers][attention width / 16]
    softmax: int  # [workers][heads], lanes 0 and 1: maximum and sum
    scores: int  # [workers][scores_stride]
    scores_stride: int  # query heads of a KV head, times context / 16
    best: int  # [workers], lanes 0 to 2: highest logit, its token; not finite where something seen is not
    logits: int  # [logit_vectors]
    masked: int  # [workers][masked_stride]
    masked_stride: int
    rows: int  # [workers][rows_stride], see kernels/cpu/row_gemv.py
    rows_stride: int
    # For predictors of neurons (neuron_phases.py), where a model can have them:
    codes: int  # [workers][code vectors], the workers' parts of fc1 x
    code: int  # [workers][code vectors], a worker's own copy of their sum
    predicted: int  # [tiles of 64 neurons][4]
    gates: int  # [workers][gates_stride], gate rows of a worker's neurons, one after the other
    gates_stride: int
    ups: int  # the same of up rows
    after: int  # [workers], squares of a worker's share of an output, or, in lanes 0 and 1, of q and k
    rotated: int  # [intermediate / 16], input of down where it is turned
    vectors: int

    @classmethod
    def of(cls, weights: WeightMap, workers: int) -> "Scratch":
        """Lay the buffers out one after the other."""
        config, matrices = weights.config, weights.matrices
        row = config.architecture
        shapes = [matrices.shape(site) for site in Site]
        most = max(shape.cols for shape in shapes)
        input_stride = most // 16
        # Of the row layout: the input without what is skipped, then in the kernels' order.
        masked_stride = row_superblocks(most) * X_VECTORS if has_rows(weights) else 0
        rows_stride = row_superblocks(most) * ROW_VECTORS if has_rows(weights) else 0
        scores_stride = _scores_stride(weights)
        predicts = can_predict(weights)
        gates_stride = -(-config.intermediate_size // workers) // 16 + 2 if predicts else 0
        sizes = {
            "hidden": config.hidden_size // 16,
            "query": shapes[Site.QKV].rows // 16,
            "activation": config.intermediate_size // 16,
            "squares": workers,
            "inputs": workers * input_stride,
            "partial": workers * max(shape.padded_rows for shape in shapes) // 16,
            "gemv": workers * SCRATCH_VECTORS,
            "heads": workers * shapes[Site.O].cols // 16,
            "softmax": workers * config.num_attention_heads,
            "scores": workers * scores_stride,
            "best": workers,
            "logits": weights.logit_vectors,
            "masked": workers * masked_stride,
            "rows": workers * rows_stride,
            "codes": workers * _code_vectors(weights),
            "code": workers * _code_vectors(weights),
            "predicted": 4 * tiles_for(config.intermediate_size) if predicts else 0,
            "gates": workers * gates_stride,
            "ups": workers * gates_stride,
            "after": workers if row.norms is not NormRule.BEFORE or row.qk_norm_whole else 0,
            "rotated": _rotated_vectors(weights),
        }
        starts, offset = {}, 0
        for name, size in sizes.items():
            starts[name] = offset
            offset += size
        return cls(
            **starts, input_stride=input_stride, scores_stride=scores_stride, masked_stride=masked_stride,
            rows_stride=rows_stride, gates_stride=gates_stride, vectors=offset,
        )  # fmt: skip


@dataclass(frozen=True)
class IntegerMap:
    """Offsets in the decode step's i32 array; the barrier's counter is element 0, alone in its cache line."""

    counts: int  # [layers][4], active inputs of all tokens of the launch
    tokens: int  # [MOST_TOKENS], the best token after each of them
    everything: int  # 0, 1, 2, ...: the active list of a dense site
    lists: int  # [workers][list_stride], active lists
    list_stride: int
    workspaces: int  # [workers][WORKSPACE_INTEGERS], see kernels/cpu/tile_sums.py
    # For predictors of neurons, where a model can have them:
    predictors: int  # [layers], number of a layer's predictor, -1 for none
    neurons: int  # [layers][2], gate rows and up rows of all tokens of the launch
    parallel: int  # 1: gate and up rows under one list
    survivors: int  # [workers][list_stride]
    size: int

    @classmethod
    def of(cls, weights: WeightMap, workers: int) -> "IntegerMap":
        """Lay the parts out, each on cache lines of its own."""
        most = max(weights.matrices.shape(site).cols for site in Site)
        counts = SITE_TABLE + -(-weights.site_table().size // 16) * 16
        tokens = counts + -(-weights.config.num_hidden_layers * len(SITES) // 16) * 16
        everything = tokens + -(-MOST_TOKENS // 16) * 16
        lists = everything + -(-most // 16) * 16
        list_stride = (most // 16 + 1) * 16
        workspaces = lists + workers * list_stride
        predictors = workspaces + workers * WORKSPACE_INTEGERS
        layers = -(-weights.config.num_hidden_layers // 16) * 16
        neurons = predictors + layers
        parallel = neurons + 2 * layers
        survivors = parallel + 16
        size = survivors + workers * list_stride if can_predict(weights) else predictors
        return cls(
            counts, tokens, everything, lists, list_stride, workspaces, predictors, neurons, parallel, survivors, size
        )


@dataclass(frozen=True)
class ChunkMap:
    """First vectors of prefill's buffers (f32 x 16) and their strides per token, for up to CHUNK tokens."""

    hidden: int
    inputs: tuple[int, ...]  # per site: the input of its matrix
    output: int
    output_stride: int
    logits: int
    tiles: int  # [workers][tile_stride], scratch of the products
    tile_stride: int
    scores: int  # [workers][scores_stride]
    scores_stride: int
    softmax: int  # [workers][query heads of a KV head]
    codes: int  # [workers][code vectors], of a predictor of neurons
    predicted: int  # [workers][tiles of 64 neurons][4]
    rotated: int  # [workers][rotated_stride], a token's input of down where it is turned
    rotated_stride: int
    vectors: int

    @classmethod
    def of(cls, weights: WeightMap, workers: int, exact: bool) -> "ChunkMap":
        """Lay the buffers out one after the other."""
        config = weights.config
        offset = CHUNK * config.hidden_size // 16
        inputs = []
        shapes = [weights.matrices.shape(site) for site in Site]
        for shape in shapes:
            inputs.append(offset)
            offset += CHUNK * shape.cols // 16
        output_stride = max(shape.padded_rows for shape in shapes) // 16
        output, offset = offset, offset + CHUNK * output_stride
        head = weights.matrices.head
        kinds = [*weights.matrices.kinds, *([] if head is None else [head.kind])]
        tile_stride = max(ROW_TILE_VECTORS, *(scratch_vectors(CHUNK, kind.decoder, exact) for kind in kinds))
        tiles, offset = offset, offset + workers * tile_stride
        scores_stride = _scores_stride(weights)
        scores, offset = offset, offset + workers * scores_stride
        softmax, offset = offset, offset + workers * _queries_per_kv(weights)
        logits, offset = offset, offset + LOGIT_ROWS * weights.logit_vectors
        codes, offset = offset, offset + workers * _code_vectors(weights)
        predicted = offset
        if can_predict(weights):
            offset += workers * 4 * tiles_for(config.intermediate_size)
        rotated, rotated_stride = offset, _rotated_vectors(weights)
        offset += workers * rotated_stride
        return cls(
            0, tuple(inputs), output, output_stride, logits, tiles, tile_stride, scores, scores_stride, softmax, codes,
            predicted, rotated, rotated_stride, offset,
        )  # fmt: skip


def has_rows(weights: WeightMap) -> bool:
    """True where any matrix, the head included, is in the row layout."""
    head = weights.matrices.head
    return any(kind.rows for kind in weights.matrices.kinds) or (head is not None and head.kind.rows)


def can_predict(weights: WeightMap) -> bool:
    """True where some layer has gate and up in the row layout, and so can have a predictor of neurons."""
    return weights.matrices.has_gate_up_rows


def _code_vectors(weights: WeightMap) -> int:
    """Vectors of fc1 x for the highest rank that there is, in tiles."""
    return 4 * tiles_for(weights.config.hidden_size) if can_predict(weights) else 0


def _rotated_vectors(weights: WeightMap) -> int:
    return weights.config.intermediate_size // 16 if weights.config.rotates_down else 0


def _queries_per_kv(weights: WeightMap) -> int:
    """Query heads of a KV head."""
    return weights.config.num_attention_heads // weights.config.num_key_value_heads


def _scores_stride(weights: WeightMap) -> int:
    return _queries_per_kv(weights) * weights.context // 16
