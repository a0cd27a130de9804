"""Prefill on a GPU: `begin_chunk`, those of a layer once for each, and `end_chunk` for the logits of a token.

A layer is several kernels because a product shares more memory than other tasks (see groups.py).
"""

from typing import Any

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.kernels.shared.geometry import LANES
from spqt_ti.kernels.simt.attention import (
    CacheShape,
    make_attention,
    make_load_own,
    make_store_own,
    make_write_pair,
)
from spqt_ti.kernels.simt.collect import Rule
from spqt_ti.kernels.simt.groups import SHARED, array_of, group_sum, log2, round_up
from spqt_ti.kernels.simt.hadamard import BLOCK, BLOCK_THREADS, make_combine_runs, make_transform_block
from spqt_ti.kernels.simt.head import THREADS as HEAD_THREADS
from spqt_ti.kernels.simt.head import Best, make_embed
from spqt_ti.kernels.simt.heads import make_entries, make_first_seen, make_inverse_size, make_place_pair
from spqt_ti.kernels.simt.matmul import THREADS as MATMUL_THREADS
from spqt_ti.kernels.simt.norm import make_norm
from spqt_ti.kernels.simt.products import make_matmul, matmul_threads
from spqt_ti.kernels.simt.schemes.decoder import Matrix, words4
from spqt_ti.kernels.simt.submission import Launch
from spqt_ti.model.constants import Constants
from spqt_ti.model.engine import CHUNK
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.simt.head_tasks import make_head_tasks
from spqt_ti.model.simt.maps import FloatMap, IntegerMap
from spqt_ti.model.simt.weights import LayerSpan, WeightMap
from spqt_ti.model.sites import SITE_COUNT, Site

_GROUP = 128  # threads of a group, except for products


def make_chunk_kernels(
    weight_map: WeightMap, constants: Constants, cache_shape: CacheShape, selectors: SelectorMap, floats: FloatMap,
    ints: IntegerMap, *, span: LayerSpan | None = None,
):  # fmt: skip
    """Build begin_chunk, the launches of a layer (of named arrays, layer, start, count and masked), and end_chunk for a
    model of these shapes, for up to CHUNK tokens. The launches are for the layers of a span, by default the first.
    """
    config, span = weight_map.config, span or weight_map.spans[0]
    hidden, width = config.hidden_size, span.width
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    half, queries_per_kv = head_dim // 2, heads // kv_heads
    attention = heads * head_dim
    matrix_maps = [span.matrices[site.label] for site in Site]
    padded_rows = [matrix_map.shape.padded_rows for matrix_map in matrix_maps]
    matmuls = [make_matmul(matrix_map.shape, CHUNK) for matrix_map in matrix_maps]
    threads = [matmul_threads(matrix_map.shape, CHUNK) for matrix_map in matrix_maps]
    biases = [constants.layer.get(f"{site.label}_bias", -1) for site in Site]
    norm = make_norm(hidden, _GROUP, config.rms_norm_eps)
    attend_threads = max(_GROUP, 1 << (head_dim - 1).bit_length())
    attend = make_attention(cache_shape, attend_threads, config.scales.attention, config.scales.attention_cap)
    load_own = make_load_own(cache_shape)
    store_own, write_pair = make_store_own(head_dim), make_write_pair(cache_shape)
    head_offsets = floats.head_constants(constants, config, cache_shape.context)
    low_entry, high_entry = make_entries(head_dim, head_offsets.turned)
    scales, after = config.scales, {Site.O: "after_attention_norm", Site.DOWN: "after_ffn_norm"}
    after_norms = {site: constants.layer.get(name, -1) for site, name in after.items()}
    normalised, normal_heads = head_offsets.q_norm is not None, heads + kv_heads
    place_pair, inverse_size = make_place_pair(head_dim, head_offsets), make_inverse_size(head_offsets)
    first_seen = make_first_seen(head_offsets)
    activate = make_activate(config.hidden_act, ti.exp, config.hidden_act_param, config.architecture.activates_up)
    head, embed = make_head_tasks(weight_map, floats.partial), make_embed(hidden, scales.embedding)
    multiply_head, score = head.multiply, head.score
    attention_norm, ffn_norm = (constants.layer.get(name, -1) for name in ("attention_norm", "ffn_norm"))
    runs = floats.runs(constants, config, width)
    transform_block: Any = runs and make_transform_block(runs)
    combine_runs: Any = runs and make_combine_runs(runs)
    blocks, block_log2, turns = runs.blocks if runs else 0, log2(BLOCK_THREADS), runs is not None
    run = -(-hidden // _GROUP)
    pairs = (heads + 2 * kv_heads) * half
    factor_threads = round_up(CHUNK * normal_heads, _GROUP)
    pair_threads, width_threads = round_up(CHUNK * pairs, _GROUP), round_up(CHUNK * width, _GROUP)
    group_log2, attend_log2 = log2(_GROUP), log2(attend_threads)

    @ti.func
    def output(a: ti.template(), layer, site: ti.template(), token, row):
        """A row of a site's product for a token, with its bias."""
        total = a[floats.chunk_output + token * padded_rows[site] + row]
        if ti.static(biases[site] >= 0):
            total += a[floats.constants + layer * constants.stride + biases[site] + row]
        return total

    @ti.func
    def add_residual(a: ti.template(), layer, site: ti.template(), token, t):
        """hidden += the site's output, normalised where the model does that, on a thread's run."""
        factor = scales.residual
        if ti.static(after_norms[site] >= 0):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            squares = 0.0
            for k in range(run):
                i = t * run + k
                if i < hidden:
                    value = output(a, layer, site, token, i)
                    squares += value * value
            factor /= ti.sqrt(group_sum(shared, t, squares, _GROUP) / hidden + config.rms_norm_eps)
        for k in range(run):
            i = t * run + k
            if i < hidden:
                at = floats.chunk_hidden + token * hidden + i
                added = output(a, layer, site, token, i)
                if ti.static(after_norms[site] >= 0):
                    added *= factor * a[floats.constants + layer * constants.stride + after_norms[site] + i]
                elif ti.static(scales.residual != 1.0):
                    added *= factor
                a[at] = a[at] + added

    @ti.func
    def normalise(a: ti.template(), layer, weight: ti.template(), target: ti.template(), token, t):
        """RMSNorm(hidden) by the weights of a layer, or hidden itself where it has none."""
        if ti.static(weight < 0):
            for k in range(run):
                i = t * run + k
                if i < hidden:
                    a[target + token * hidden + i] = a[floats.chunk_hidden + token * hidden + i]
        else:
            weights = floats.constants + layer * constants.stride + weight
            norm(a, floats.chunk_hidden + token * hidden, weights, target + token * hidden, t)

    @ti.func
    def multiply(
        i, quants: ti.template(), headers: ti.template(), a: ti.template(), layer, site: ti.template(), count, masked
    ):  # fmt: skip
        threshold = -1.0
        if masked:
            threshold = a[floats.selectors + layer * SITE_COUNT + site]
            if threshold <= 0.0:
                threshold = -1.0
        weights = floats.selectors + (selectors.weights + (layer * SITE_COUNT + site) * selectors.stride) * LANES
        weighted = a[floats.selectors + selectors.weighted + layer * SITE_COUNT + site] > 0.0
        quants_at = layer * span.quants_stride + (span.quants + matrix_maps[site].quants)
        headers_at = layer * span.headers_stride + (span.headers + matrix_maps[site].headers)
        matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
        rule = ti.static(Rule(threshold, a, weights, weighted))
        matmuls[site](i, matrix, a, floats.chunk_inputs[site], floats.chunk_output, count, rule)

    @ti.func
    def activated(a: ti.template(), layer, token, j):
        """Value j of a token's feed-forward network: what down multiplies, or what is turned before."""
        gate = output(a, layer, Site.GATE_UP, token, j)
        return activate(gate, output(a, layer, Site.GATE_UP, token, width + j))

    @ti.kernel
    def begin_chunk(
        words: array_of(ti.u32), scales: array_of(ti.u32), a: array_of(ti.f32), tokens: array_of(ti.i32), count: ti.i32
    ):  # fmt: skip
        """Embed `count` tokens."""
        ti.loop_config(block_dim=_GROUP)
        for i in range(CHUNK * hidden):
            token = i // hidden
            if token < count:
                a[floats.chunk_hidden + i] = embed(words, scales, tokens[token], i - token * hidden)

    @ti.kernel
    def normalise_input(a: array_of(ti.f32), layer: ti.i32, count: ti.i32):
        ti.loop_config(block_dim=_GROUP)
        for i in range(CHUNK * _GROUP):
            if i >> group_log2 < count:  # the same for all of the group, here and below
                normalise(a, layer, attention_norm, floats.chunk_inputs[Site.QKV], i >> group_log2, i & (_GROUP - 1))

    @ti.kernel
    def project(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), cache: array_of(ti.f32),
        layer: ti.i32, start: ti.i32, count: ti.i32, masked: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=MATMUL_THREADS)
        for i in range(threads[Site.QKV]):
            multiply(i, quants, headers, a, layer, Site.QKV, count, masked)
        if ti.static(normalised):
            ti.loop_config(block_dim=_GROUP)
            for i in range(factor_threads):
                token = i // normal_heads
                if token < count:
                    squares = 0.0
                    first, values = (i - token * normal_heads) * head_dim, head_dim
                    if ti.static(head_offsets.whole):
                        is_query = i - token * normal_heads < heads
                        first = ti.select(is_query, 0, heads * head_dim)
                        values = ti.select(is_query, heads * head_dim, kv_heads * head_dim)
                    for d in range(values):
                        value = output(a, layer, Site.QKV, token, first + d)
                        squares += value * value
                    a[floats.chunk_factors + i] = inverse_size(squares, values)
        ti.loop_config(block_dim=_GROUP)
        for i in range(pair_threads):
            token = i // pairs
            if token < count:
                head = (i - token * pairs) // half
                d = i - token * pairs - head * half
                low_at, high_at = low_entry(d), high_entry(d)
                low = output(a, layer, Site.QKV, token, head * head_dim + low_at)
                high = output(a, layer, Site.QKV, token, head * head_dim + high_at)
                if head < heads + kv_heads:
                    factor = 1.0
                    if ti.static(normalised):
                        factor = a[floats.chunk_factors + token * normal_heads + head]
                    number = head - ti.select(head < heads, 0, heads)
                    low, high = place_pair(a, low, high, d, layer, start + token, head < heads, number, factor)
                if head < heads:
                    query = floats.chunk_query + token * attention + head * head_dim
                    a[query + low_at] = low
                    a[query + high_at] = high
                else:
                    is_key = head < heads + kv_heads
                    kv_head = head - ti.select(is_key, heads, heads + kv_heads)
                    keys = layer * cache_shape.layer_stride + kv_head * 2 * cache_shape.half_stride
                    write_pair(cache, keys, is_key, start + token, low_at, high_at, low, high)

    @ti.kernel
    def attend_chunk(a: array_of(ti.f32), cache: array_of(ti.f32), layer: ti.i32, start: ti.i32, count: ti.i32):
        ti.loop_config(block_dim=attend_threads)
        for i in range(CHUNK * heads * attend_threads):
            own = ti.simt.block.SharedArray((SHARED,), ti.f32)  # 3 * head_dim
            token, t = i // (heads * attend_threads), i & (attend_threads - 1)
            if token < count:
                head = (i - token * heads * attend_threads) >> attend_log2
                keys = layer * cache_shape.layer_stride + head // queries_per_kv * 2 * cache_shape.half_stride
                at = token * attention + head * head_dim
                load_own(cache, keys, a, floats.chunk_query + at, start + token, own, t)
                attend(cache, keys, own, first_seen(a, layer, start + token), start + token, t)
                store_own(own, a, floats.chunk_inputs[Site.O] + at, t)

    @ti.kernel
    def multiply_out(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), layer: ti.i32, count: ti.i32,
        masked: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=MATMUL_THREADS)
        for i in range(threads[Site.O]):
            multiply(i, quants, headers, a, layer, Site.O, count, masked)

    @ti.kernel
    def normalise_middle(a: array_of(ti.f32), layer: ti.i32, count: ti.i32):
        ti.loop_config(block_dim=_GROUP)
        for i in range(CHUNK * _GROUP):
            if i >> group_log2 < count:
                add_residual(a, layer, Site.O, i >> group_log2, i & (_GROUP - 1))
                normalise(a, layer, ffn_norm, floats.chunk_inputs[Site.GATE_UP], i >> group_log2, i & (_GROUP - 1))

    @ti.kernel
    def multiply_gate_up(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), layer: ti.i32, count: ti.i32,
        masked: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=MATMUL_THREADS)
        for i in range(threads[Site.GATE_UP]):
            multiply(i, quants, headers, a, layer, Site.GATE_UP, count, masked)
        if ti.static(not turns):
            ti.loop_config(block_dim=_GROUP)
            for i in range(width_threads):
                token = i // width
                if token < count:
                    a[floats.chunk_inputs[Site.DOWN] + i] = activated(a, layer, token, i - token * width)

    @ti.kernel
    def rotate_down(a: array_of(ti.f32), layer: ti.i32, count: ti.i32):
        """The activation, turned: its transformed runs take the place of gate, which nobody else reads."""
        ti.loop_config(block_dim=BLOCK_THREADS)
        for i in range(CHUNK * blocks * BLOCK_THREADS):
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            token, t = (i >> block_log2) // blocks, i & (BLOCK_THREADS - 1)
            first = ((i >> block_log2) - token * blocks) * BLOCK
            if token < count:  # the same for all of the group
                ti.simt.block.sync()
                for part in ti.static(range(BLOCK // BLOCK_THREADS)):
                    j = part * BLOCK_THREADS + t
                    shared[j] = 0.0
                    if first + j < width:
                        shared[j] = activated(a, layer, token, first + j)
                transform_block(shared, t)
                for part in ti.static(range(BLOCK // BLOCK_THREADS)):
                    j = part * BLOCK_THREADS + t
                    if first + j < width:
                        a[floats.chunk_output + token * padded_rows[Site.GATE_UP] + first + j] = shared[j]
        ti.loop_config(block_dim=_GROUP)
        for i in range(width_threads):
            token = i // width
            if token < count:
                source = floats.chunk_output + token * padded_rows[Site.GATE_UP]
                a[floats.chunk_inputs[Site.DOWN] + i] = combine_runs(a, source, i - token * width)

    @ti.kernel
    def multiply_down(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), layer: ti.i32, count: ti.i32,
        masked: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=MATMUL_THREADS)
        for i in range(threads[Site.DOWN]):
            multiply(i, quants, headers, a, layer, Site.DOWN, count, masked)
        ti.loop_config(block_dim=_GROUP)
        for i in range(CHUNK * _GROUP):
            if i >> group_log2 < count:
                add_residual(a, layer, Site.DOWN, i >> group_log2, i & (_GROUP - 1))

    @ti.kernel
    def end_chunk(
        head_words: array_of(head.element), head_scales: array_of(head.element), a: array_of(ti.f32),
        integers: array_of(ti.i32), logits: array_of(ti.f32), token: ti.i32,
    ):  # fmt: skip
        """Logits [tiles * 64] of one token of the chunk."""
        ti.loop_config(block_dim=_GROUP)
        for t in range(_GROUP):
            norm(
                a, floats.chunk_hidden + token * hidden, floats.constants + constants.final_norm,
                floats.chunk_inputs[Site.QKV], t,
            )  # fmt: skip
        if ti.static(head.product_threads > 0):
            ti.loop_config(block_dim=head.product_group)
            for i in range(head.product_threads):
                multiply_head(i, head_words, head_scales, a, floats.chunk_inputs[Site.QKV], integers)
        ti.loop_config(block_dim=HEAD_THREADS)
        for i in range(head.score_threads):
            best = ti.static(Best(a, floats.best, integers, ints.best_rows))
            score(i, head_words, head_scales, a, floats.chunk_inputs[Site.QKV], logits, best)

    weights = ("quants", "headers", "a")
    layer_launches = [
        Launch(normalise_input, ("a",), ("layer", "count")),
        Launch(project, (*weights, "cache"), ("layer", "start", "count", "masked")),
        Launch(attend_chunk, ("a", "cache"), ("layer", "start", "count")),
        Launch(multiply_out, weights, ("layer", "count", "masked")),
        Launch(normalise_middle, ("a",), ("layer", "count")),
        Launch(multiply_gate_up, weights, ("layer", "count", "masked")),
        *([Launch(rotate_down, ("a",), ("layer", "count"))] if turns else []),
        Launch(multiply_down, weights, ("layer", "count", "masked")),
    ]
    return begin_chunk, layer_launches, end_chunk
