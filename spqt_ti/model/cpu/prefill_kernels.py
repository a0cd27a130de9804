"""The kernels of prefill: embed a chunk of tokens, put it through one layer, compute logits.

As in the decode step every worker runs the whole kernel and waits for the others at a spin barrier; here the work is
split by rows of a matrix or by tokens.
"""

import functools
from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.attention import CacheShape, Offsets, make_attend
from spqt_ti.kernels.cpu.head import make_head
from spqt_ti.kernels.cpu.heads import make_first_seen, make_normalise_head, make_place_head
from spqt_ti.kernels.cpu.matmul import make_vocabulary_matmul
from spqt_ti.kernels.cpu.norm import scaled_copy, square_sum
from spqt_ti.kernels.cpu.tokens import Tokens
from spqt_ti.kernels.cpu.vectors import array_of, exp_lanes, f16x16, f32x16, u32x4, u32x8, u32x16
from spqt_ti.kernels.cpu.workers import make_wait_for_all, share_start
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.model.cpu.maps import COUNT, LAYER, MASKED, SITE_TABLE, START, ChunkMap, site_row
from spqt_ti.model.cpu.neuron_map import NeuronMap
from spqt_ti.model.cpu.neuron_phases import make_zero_off
from spqt_ti.model.cpu.online_rotation import make_rotate_token
from spqt_ti.model.cpu.products import make_chunk_head, make_chunk_product, make_kept
from spqt_ti.model.cpu.weights import SiteField, WeightMap
from spqt_ti.model.sites import SITE_COUNT, Site


class Launch(NamedTuple):
    """What a worker's part of a launch works on: the arrays of `run_layer`, and what it is to do (see maps.py)."""

    quants: Any
    tail: Any
    headers: Any
    words: Any
    scales: Any
    constants: Any
    cache: Any
    a: Any
    address: Any
    integers: Any
    layer: Any
    start: Any
    count: Any
    masked: Any
    worker: Any


@functools.cache
def make_prefill_kernels(
    weights: WeightMap, cache_shape: CacheShape, chunk: ChunkMap, workers: int, exact: bool,
    neurons: NeuronMap | None = None,
):  # fmt: skip
    """The kernels (embed tokens, run one layer, compute logits) for a model of these shapes; `exact`: in f32
    throughout; `neurons`: of layers that have predictors.
    """
    config = weights.config
    hidden = config.hidden_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, queries_per_kv, attention = head_dim // 16, heads // kv_heads, heads * head_dim // 16
    eps, predictors = config.rms_norm_eps, SITE_TABLE + weights.site_table().size
    wait_for_all = make_wait_for_all()
    attention_norm, ffn_norm = weights.layer_constant("attention_norm"), weights.layer_constant("ffn_norm")
    after_attention = weights.layer_constant("after_attention_norm")
    normalises_before = attention_norm is not None
    after_ffn, normalises_after = weights.layer_constant("after_ffn_norm"), after_attention is not None
    scales, whole_norm = config.scales, weights.head_constants.whole
    constants_stride, final_norm = weights.constants_stride, weights.final_norm
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    inputs, output, stride = chunk.inputs, chunk.output, chunk.output_stride
    head_tile, tiles = weights.head_tile, weights.vocabulary_tiles
    _, embed = make_head(config.hidden_size, scales.embedding)
    products = [
        make_chunk_product(kind, chunk, workers, exact, config.has_exact_zeros) for kind in weights.matrices.kinds
    ]
    one_kind, kept = len(products) == 1, make_kept(weights)
    head_map = weights.matrices.head
    tiled_head, logit_vectors = head_map is None, weights.logit_vectors
    score_head: Any = head_map and make_chunk_head(head_map, chunk, workers, exact)
    windowed = weights.head_constants.window is not None
    attend = make_attend(cache_shape, queries_per_kv, windowed, scales.attention, scales.attention_cap)
    place_head = make_place_head(cache_shape, heads, weights.head_constants)
    whole_factors, normalise_head = make_normalise_head(head_dim, heads, kv_heads, weights.head_constants)
    first_seen = make_first_seen(weights.head_constants)
    activate = make_activate(config.hidden_act, exp_lanes, config.hidden_act_param, config.architecture.activates_up)
    vocabulary_matmul = make_vocabulary_matmul(config.hidden_size, workers)
    predicts = neurons is not None
    zero_off: Any = neurons and make_zero_off(neurons, weights, chunk)
    turns, rotate = config.rotates_down, make_rotate_token(weights, chunk)

    @ti.func
    def multiply(d: ti.template(), site, source):
        """output = W input of a site for every token."""
        at = site_row(d.layer, site)
        x_stride = d.integers[at + SiteField.COLS] >> 4
        tokens = ti.static(Tokens(source, x_stride, output, stride, d.count, d.address))
        if ti.static(one_kind):
            products[0](d, at, tokens)
        else:
            for k in ti.static(range(len(products))):
                if d.integers[at + SiteField.KIND] == k:
                    products[k](d, at, tokens)

    @ti.func
    def predictor_of(d: ti.template()):
        return d.integers[predictors + d.layer]

    @ti.func
    def biased(d: ti.template(), site, token, vector):
        """Vector `vector` of a site's output for a token, with the bias."""
        bias = d.integers[site_row(d.layer, site) + SiteField.BIAS]
        total = d.a[output + token * stride + vector]
        if bias >= 0:
            total += d.constants[d.layer * constants_stride + bias + vector]
        return total

    @ti.func
    def mask(d: ti.template(), site, first, vectors):
        """Zero what the decode step would skip; NaN stays, to be noticed."""
        selector = d.layer * SITE_COUNT + site
        for i in range(vectors):
            d.a[first + i] = kept(d.constants, selector, d.a[first + i], i)

    @ti.func
    def normalise(a: ti.template(), constants: ti.template(), weight, token, target):
        squares = square_sum(a, token * hidden, (token + 1) * hidden)
        factor = 1.0 / ti.sqrt(squares / (hidden * 16) + eps)
        scaled_copy(a, token * hidden, constants, weight, factor, target + token * hidden, hidden)

    @ti.func
    def normalise_share(d: ti.template(), site, weight, target):
        for token in range(share_start(d.count, d.worker, workers), share_start(d.count, d.worker + 1, workers)):
            if ti.static(not normalises_before):
                for i in range(hidden):
                    d.a[target + token * hidden + i] = d.a[token * hidden + i]
            else:
                normalise(d.a, d.constants, weight, token, target)
            masked = d.masked
            if ti.static(predicts):  # noqa: SIM102
                if site == Site.GATE_UP and predictor_of(d) >= 0:  # which sees all inputs, as gate and up do
                    masked = 0
            if masked == 1:
                mask(d, site, target + token * hidden, hidden)

    @ti.func
    def normalise_heads(d: ti.template()):
        """Bias, and norms of all of q and all of k, for the worker's tokens."""
        for token in range(share_start(d.count, d.worker, workers), share_start(d.count, d.worker + 1, workers)):
            at = output + token * stride
            for i in range((heads + 2 * kv_heads) * head_vectors):
                d.a[at + i] = biased(d, Site.QKV, token, i)
            keys = at + heads * head_vectors
            q_squares, k_squares = square_sum(d.a, at, keys), square_sum(d.a, keys, keys + kv_heads * head_vectors)
            q_factor, k_factor = whole_factors(q_squares, k_squares)
            for head in range(heads + kv_heads):
                normalise_head(d.a, at + head * head_vectors, d.constants, d.layer, head, q_factor, k_factor)

    @ti.func
    def place_heads(d: ti.template()):
        """Bias and place the worker's heads for every token."""
        first = share_start(heads + 2 * kv_heads, d.worker, workers)
        for head in range(first, share_start(heads + 2 * kv_heads, d.worker + 1, workers)):
            for token in range(d.count):
                at = output + token * stride + head * head_vectors
                if ti.static(not whole_norm):
                    for i in range(head_vectors):
                        d.a[at + i] = biased(d, Site.QKV, token, head * head_vectors + i)
                place_head(d.a, at, d.constants, d.cache, d.layer, head, d.start + token)

    @ti.func
    def attend_tokens(d: ti.template()):
        """Attention of every head for every `workers`-th token: later tokens see more positions, so shares are
        interleaved.
        """
        for i in range((d.count + workers - 1 - d.worker) // workers):
            token = i * workers + d.worker
            position = d.start + token
            begin = first_seen(d.constants, d.layer, position)
            for kv_head in range(kv_heads):
                head = kv_head * queries_per_kv
                keys = d.layer * cache_layer + kv_head * 2 * half_stride
                scores = chunk.scores + d.worker * chunk.scores_stride
                out = inputs[Site.O] + token * attention + head * head_vectors
                softmax = chunk.softmax + d.worker * queries_per_kv
                attend(
                    d.cache, keys, d.a, output + token * stride + head * head_vectors, begin >> 4, (position >> 4) + 1,
                    begin, position,
                    ti.static(Offsets(scores, out, softmax)),
                )  # fmt: skip
                for h in range(queries_per_kv):
                    for v in range(head_vectors):
                        at = out + h * head_vectors + v
                        d.a[at] = d.a[at] / d.a[softmax + h][1]
            if d.masked == 1:
                mask(d, Site.O, inputs[Site.O] + token * attention, attention)

    @ti.func
    def add_residual(d: ti.template(), site):
        for token in range(share_start(d.count, d.worker, workers), share_start(d.count, d.worker + 1, workers)):
            factor, weight = scales.residual, 0
            if ti.static(normalises_after):
                at = output + token * stride
                for i in range(hidden):
                    d.a[at + i] = biased(d, site, token, i)
                factor /= ti.sqrt(square_sum(d.a, at, at + hidden) / (hidden * 16) + eps)
                weight = d.layer * constants_stride + ti.select(site == Site.O, after_attention, after_ffn)
            for i in range(hidden):
                if ti.static(normalises_after):
                    added = (d.a[output + token * stride + i] * factor) * d.constants[weight + i]
                    d.a[token * hidden + i] = d.a[token * hidden + i] + added
                elif ti.static(scales.residual != 1.0):
                    d.a[token * hidden + i] = d.a[token * hidden + i] + biased(d, site, token, i) * factor
                else:
                    d.a[token * hidden + i] = d.a[token * hidden + i] + biased(d, site, token, i)

    @ti.func
    def swiglu(d: ti.template()):
        """Input of down, which may be narrower in one layer than in another."""
        width = d.integers[site_row(d.layer, Site.DOWN) + SiteField.COLS] >> 4
        for token in range(share_start(d.count, d.worker, workers), share_start(d.count, d.worker + 1, workers)):
            at = inputs[Site.DOWN] + token * width
            for i in range(width):
                g = biased(d, Site.GATE_UP, token, i)
                up = biased(d, Site.GATE_UP, token, width + i)
                d.a[at + i] = activate(g, up)
            if ti.static(turns):
                rotate(d, at)
            if d.masked == 1:
                if ti.static(predicts):  # noqa: SIM102
                    if predictor_of(d) >= 0:
                        zero_off(d, predictor_of(d), inputs[Site.GATE_UP] + token * hidden, at)
                mask(d, Site.DOWN, at, width)

    @ti.kernel
    def embed_tokens(
        words: array_of(u32x16), scales: array_of(f16x16), a: array_of(f32x16), tokens: array_of(ti.i32), count: ti.i32
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
                for i in range(hidden):
                    a[token * hidden + i] = embed(words, scales, tokens[token], i)

    @ti.kernel
    def run_layer(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), words: array_of(u32x16),
        scales: array_of(f16x16), constants: array_of(f32x16), cache: array_of(cache_shape.dtype), a: array_of(f32x16),
        a_address: ti.i64, integers: array_of(ti.i32),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            address = a_address
            layer, start, count, masked = integers[LAYER], integers[START], integers[COUNT], integers[MASKED]
            d = ti.static(
                Launch(
                    quants, tail, headers, words, scales, constants, cache, a, address, integers, layer, start, count,
                    masked, worker,
                )
            )  # fmt: skip
            norms = layer * constants_stride
            arrived = 0
            for site in range(SITE_COUNT):
                source = inputs[Site.QKV]
                if site == Site.O:
                    source = inputs[Site.O]
                    attend_tokens(d)
                elif site == Site.DOWN:
                    source = inputs[Site.DOWN]
                    swiglu(d)
                else:
                    source = ti.select(site == Site.QKV, inputs[Site.QKV], inputs[Site.GATE_UP])
                    norm = norms
                    if ti.static(normalises_before):
                        norm += ti.select(site == Site.QKV, attention_norm, ffn_norm)
                    normalise_share(d, site, norm, source)
                arrived += workers
                wait_for_all(integers, 0, arrived)
                multiply(d, site, source)
                arrived += workers
                wait_for_all(integers, 0, arrived)
                if site == Site.QKV:
                    if ti.static(whole_norm):
                        normalise_heads(d)
                        arrived += workers
                        wait_for_all(integers, 0, arrived)
                    place_heads(d)
                    arrived += workers
                    wait_for_all(integers, 0, arrived)
                elif site != Site.GATE_UP:
                    add_residual(d, site)

    @ti.kernel
    def score_tokens(
        words: array_of(u32x16), scales: array_of(f16x16), quants: array_of(u32x16), headers: array_of(u32x4),
        constants: array_of(f32x16), a: array_of(f32x16), a_address: ti.i64, first: ti.i32, count: ti.i32,
    ):  # fmt: skip
        # The normalised states go where the layers' first inputs were.
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for token in range(
                first + share_start(count, worker, workers), first + share_start(count, worker + 1, workers)
            ):
                normalise(a, constants, final_norm, token, inputs[Site.QKV])
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            x, number, address = inputs[Site.QKV] + first * hidden, count, a_address
            tokens = ti.static(Tokens(x, hidden, chunk.logits, logit_vectors, number, address))
            if ti.static(tiled_head):
                tile = chunk.tiles + worker * chunk.tile_stride
                vocabulary_matmul(words, scales, head_tile, tiles, a, tile, tokens, worker)
            else:
                score_head(quants, headers, a, tokens, worker)

    return embed_tokens, run_layer, score_tokens
