"""The kernels of a token on a GPU: `begin_token`, `run_layer` once per layer, `end_token`.

A layer is ten tasks, each spread over groups: residual, norm, qkv, attention, o; residual, norm, gate and up, SwiGLU,
down. A norm needs the whole of a vector, so the task before it leaves each group's sum of squares. What norms,
attention and SwiGLU compute, they collect, a segment of the list per group.
"""

from typing import Any

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.kernels.simt.active_list import SEGMENT
from spqt_ti.kernels.simt.attention import CacheShape, make_append_own, make_attention, make_store_own
from spqt_ti.kernels.simt.groups import SHARED, array_of, group_sum, log2, round_up
from spqt_ti.kernels.simt.hadamard import BLOCK, BLOCK_THREADS, make_combine_runs, make_transform_block
from spqt_ti.kernels.simt.head import THREADS as HEAD_THREADS
from spqt_ti.kernels.simt.head import Best, make_embed
from spqt_ti.kernels.simt.heads import Squares, make_entries, make_first_seen, make_place_own, make_place_pair
from spqt_ti.kernels.simt.norm import NORM_GROUP, make_norm_factor, norm_groups
from spqt_ti.kernels.simt.schemes.decoder import words4
from spqt_ti.model.constants import Constants
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.simt.head_tasks import make_head_tasks
from spqt_ti.model.simt.maps import FloatMap, IntegerMap
from spqt_ti.model.simt.site_tasks import ATTEND, make_site_tasks
from spqt_ti.model.simt.weights import LayerSpan, WeightMap
from spqt_ti.model.sites import SITE_COUNT, Site

_SPREAD = 128  # threads of a group where threads have nothing to say to one another


def make_token_kernels(
    weight_map: WeightMap, constants: Constants, cache_shape: CacheShape, selectors: SelectorMap, floats: FloatMap,
    ints: IntegerMap, *, span: LayerSpan | None = None, feed_forward: bool = True,
):  # fmt: skip
    """Build the three kernels for a model of these shapes; run_layer is for a span's layers, the first's by default.
    Without `feed_forward` it ends with the input of gate and up, for layers that predict neurons (neuron_kernels.py).
    """
    config, span = weight_map.config, span or weight_map.spans[0]
    hidden, width = config.hidden_size, span.width
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    half, queries_per_kv = head_dim // 2, heads // kv_heads
    layers = config.num_hidden_layers
    tasks = make_site_tasks(span, selectors, floats, ints)
    collect, multiply, threads, block_dims = tasks.collect, tasks.multiply, tasks.threads, tasks.groups
    segments, rows_of = tasks.segments, [product.row_of for product in tasks.products]
    biases = [constants.layer.get(f"{site.label}_bias", -1) for site in Site]
    output_factor = make_norm_factor(hidden, NORM_GROUP, config.rms_norm_eps)
    input_factor = make_norm_factor(hidden, SEGMENT, config.rms_norm_eps)
    norm_threads, norm_log2 = norm_groups(hidden) * NORM_GROUP, log2(NORM_GROUP)
    output_squares = floats.squares + norm_groups(hidden)
    input_length, input_threads = segments[Site.QKV].length, segments[Site.QKV].count * SEGMENT
    input_run = input_length // SEGMENT
    attend = make_attention(cache_shape, ATTEND, config.scales.attention, config.scales.attention_cap)
    append_own = make_append_own(cache_shape)
    store_own = make_store_own(head_dim)
    head_offsets = floats.head_constants(constants, config, cache_shape.context)
    low_entry, high_entry = make_entries(head_dim, head_offsets.turned)
    scales, after = config.scales, {Site.O: "after_attention_norm", Site.DOWN: "after_ffn_norm"}
    after_norms = {site: constants.layer.get(name, -1) for site, name in after.items()}
    normalised = head_offsets.q_norm is not None
    place_pair = make_place_pair(head_dim, head_offsets)
    whole = head_offsets.whole
    counts = (heads * head_dim, kv_heads * head_dim) if whole else (head_dim, head_dim)
    place_own = make_place_own(head_dim, ATTEND, counts, head_offsets)
    first_seen = make_first_seen(head_offsets)
    activate = make_activate(config.hidden_act, ti.exp, config.hidden_act_param, config.architecture.activates_up)
    head, embed = make_head_tasks(weight_map, floats.partial), make_embed(hidden, scales.embedding)
    multiply_head, score, best_token = head.multiply, head.score, head.best_token
    attention_norm, ffn_norm = (constants.layer.get(name, -1) for name in ("attention_norm", "ffn_norm"))
    runs = floats.runs(constants, config, width)
    transform_block: Any = runs and make_transform_block(runs)
    combine_runs: Any = runs and make_combine_runs(runs)
    block_groups, block_log2, turns = runs.blocks if runs else 0, log2(BLOCK_THREADS), runs is not None
    attend_log2, segment_log2 = log2(ATTEND), log2(SEGMENT)
    per_thread = segments[Site.DOWN].length // SEGMENT
    hidden_threads = round_up(hidden, _SPREAD)
    count_threads = round_up(layers * SITE_COUNT, _SPREAD)

    @ti.func
    def output(a: ti.template(), layer, site: ti.template(), row):
        """A row of a site's product, with its bias."""
        total = rows_of[site](a, floats.partial, row)
        if ti.static(biases[site] >= 0):
            total += a[floats.constants + layer * constants.stride + biases[site] + row]
        return total

    @ti.func
    def sum_squares(a: ti.template(), value, squares, i):
        """The sum of squares of a group's values, one per thread, to a[squares + group]."""
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        t = i & (NORM_GROUP - 1)
        total = group_sum(shared, t, value * value, NORM_GROUP)
        if t == 0:
            a[squares + (i >> norm_log2)] = total

    @ti.func
    def take_output(a: ti.template(), layer, site: ti.template(), i):
        """Of a model that normalises what a block puts out: that, to where the next input will be."""
        value = 0.0
        if i < hidden and layer >= 0:
            value = output(a, layer, site, i)
            a[floats.x + i] = value
        sum_squares(a, value, output_squares, i)

    @ti.func
    def add_residual(a: ti.template(), layer, site: ti.template(), i):
        """hidden += the site's output, normalised where the model does that; nothing before the first layer."""
        factor, value = scales.residual, 0.0
        if ti.static(after_norms[site] >= 0):
            # Not inside a condition, as in `collect`.
            shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
            factor *= output_factor(a, output_squares, shared, i & (NORM_GROUP - 1))
        if i < hidden:
            value = a[floats.hidden + i]
            if layer >= 0:
                if ti.static(after_norms[site] >= 0):
                    weight = a[floats.constants + layer * constants.stride + after_norms[site] + i]
                    value += a[floats.x + i] * (factor * weight)
                elif ti.static(scales.residual != 1.0):
                    value += output(a, layer, site, i) * factor
                else:
                    value += output(a, layer, site, i)
                a[floats.hidden + i] = value
        sum_squares(a, value, floats.squares, i)

    @ti.func
    def normalise(a: ti.template(), weights, has_norm: ti.template(), i):
        """x = RMSNorm(hidden), a thread's `input_run` values, or hidden itself where there is no such norm."""
        shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
        factor = input_factor(a, floats.squares, shared, i & (SEGMENT - 1))
        for k in range(input_run):
            j = i * input_run + k
            if j < hidden:
                value = a[floats.hidden + j]
                if ti.static(has_norm):
                    value = (value * factor) * a[weights + j]
                a[floats.x + j] = value

    @ti.kernel
    def begin_token(
        words: array_of(ti.u32), scales: array_of(ti.u32), a: array_of(ti.f32), integers: array_of(ti.i32),
        token: ti.i32, position: ti.i32,
    ):  # fmt: skip
        """Embed `token`, or, where it is negative, the best token of the last step."""
        ti.loop_config(block_dim=_SPREAD)
        for i in range(hidden_threads):
            row = token
            if token < 0:
                row = integers[ints.best]
            if i < hidden:
                a[floats.hidden + i] = embed(words, scales, row, i)
            if i == 0:
                integers[ints.position] = position

    @ti.func
    def fill_own(a: ti.template(), layer, head, position, own: ti.template(), t):
        """A head's query, and the key and value that it shares with its neighbours, the first two placed, from the
        stacked q, k, v.
        """
        ti.simt.block.sync()
        pair = t
        while pair < 3 * half:
            part = pair // half
            d = pair - part * half
            stacked = ti.select(part == 0, head, heads + (part - 1) * kv_heads + head // queries_per_kv)
            low_at, high_at = low_entry(d), high_entry(d)
            low = output(a, layer, Site.QKV, stacked * head_dim + low_at)
            high = output(a, layer, Site.QKV, stacked * head_dim + high_at)
            if ti.static(not normalised):  # noqa: SIM102
                if part < 2:
                    low, high = place_pair(a, low, high, d, layer, position, part == 0, 0, 1.0)
            own[part * head_dim + low_at] = low
            own[part * head_dim + high_at] = high
            pair += ATTEND
        if ti.static(normalised):
            q_squares, k_squares, q_head, k_head = 0.0, 0.0, head, head // queries_per_kv
            if ti.static(whole):
                row = t
                while row < (heads + kv_heads) * head_dim:
                    value = output(a, layer, Site.QKV, row)
                    if row < heads * head_dim:
                        q_squares += value * value
                    else:
                        k_squares += value * value
                    row += ATTEND
            squares = ti.static(Squares(q_squares, k_squares, q_head, k_head))
            place_own(a, own, layer, position, squares, t)
        ti.simt.block.sync()

    @ti.func
    def activated(a: ti.template(), layer, j):
        """Value j of the feed-forward network: what down multiplies, or what is turned before."""
        return activate(output(a, layer, Site.GATE_UP, j), output(a, layer, Site.GATE_UP, width + j))

    @ti.kernel
    def run_layer(
        quants: array_of(words4), headers: array_of(words4), a: array_of(ti.f32), cache: array_of(ti.f32),
        integers: array_of(ti.i32), layer: ti.i32,
    ):  # fmt: skip
        """A layer, except that its last residual is added by the next layer, or by end_token."""
        if ti.static(after_norms[Site.DOWN] >= 0):
            ti.loop_config(block_dim=NORM_GROUP)
            for i in range(norm_threads):
                take_output(a, layer - 1, Site.DOWN, i)
        ti.loop_config(block_dim=NORM_GROUP)
        for i in range(norm_threads):
            add_residual(a, layer - 1, Site.DOWN, i)
        ti.loop_config(block_dim=SEGMENT)
        for i in range(input_threads):
            normalise(a, floats.constants + layer * constants.stride + attention_norm, attention_norm >= 0, i)
            segment, t = i >> segment_log2, i & (SEGMENT - 1)
            collect(a, floats.x + segment * input_length, a, integers, layer, Site.QKV, segment, t, 0.0)
        ti.loop_config(block_dim=block_dims[Site.QKV])
        for i in range(threads[Site.QKV]):
            multiply(i, quants, headers, a, integers, layer, Site.QKV, floats.x, 0.0)
        ti.loop_config(block_dim=ATTEND)
        for i in range(heads * ATTEND):
            own = ti.simt.block.SharedArray((SHARED,), ti.f32)  # 3 * head_dim
            head, t, position = i >> attend_log2, i & (ATTEND - 1), integers[ints.position]
            keys = layer * cache_shape.layer_stride + head // queries_per_kv * 2 * cache_shape.half_stride
            fill_own(a, layer, head, position, own, t)
            if head - head // queries_per_kv * queries_per_kv == 0:  # the first of those that share it
                append_own(cache, keys, position, own, t)
            attend(cache, keys, own, first_seen(a, layer, position), position, t)
            store_own(own, a, floats.attention + head * head_dim, t)
            collect(own, 0, a, integers, layer, Site.O, head, t, 0.0)
        ti.loop_config(block_dim=block_dims[Site.O])
        for i in range(threads[Site.O]):
            multiply(i, quants, headers, a, integers, layer, Site.O, floats.attention, 0.0)
        if ti.static(after_norms[Site.O] >= 0):
            ti.loop_config(block_dim=NORM_GROUP)
            for i in range(norm_threads):
                take_output(a, layer, Site.O, i)
        ti.loop_config(block_dim=NORM_GROUP)
        for i in range(norm_threads):
            add_residual(a, layer, Site.O, i)
        ti.loop_config(block_dim=SEGMENT)
        for i in range(input_threads):
            normalise(a, floats.constants + layer * constants.stride + ffn_norm, ffn_norm >= 0, i)
            if ti.static(feed_forward):
                segment, t = i >> segment_log2, i & (SEGMENT - 1)
                collect(a, floats.x + segment * input_length, a, integers, layer, Site.GATE_UP, segment, t, 0.0)
        if ti.static(feed_forward):
            ti.loop_config(block_dim=block_dims[Site.GATE_UP])
            for i in range(threads[Site.GATE_UP]):
                multiply(i, quants, headers, a, integers, layer, Site.GATE_UP, floats.x, 0.0)
            if ti.static(turns):
                ti.loop_config(block_dim=BLOCK_THREADS)
                for i in range(block_groups * BLOCK_THREADS):
                    shared = ti.simt.block.SharedArray((SHARED,), ti.f32)
                    block, t = i >> block_log2, i & (BLOCK_THREADS - 1)
                    ti.simt.block.sync()
                    for part in ti.static(range(BLOCK // BLOCK_THREADS)):
                        j = block * BLOCK + part * BLOCK_THREADS + t
                        shared[part * BLOCK_THREADS + t] = 0.0
                        if j < width:
                            shared[part * BLOCK_THREADS + t] = activated(a, layer, j)
                    transform_block(shared, t)
                    for part in ti.static(range(BLOCK // BLOCK_THREADS)):
                        j = block * BLOCK + part * BLOCK_THREADS + t
                        if j < width:
                            a[floats.activated + j] = shared[part * BLOCK_THREADS + t]
            ti.loop_config(block_dim=SEGMENT)
            for i in range(segments[Site.DOWN].count * SEGMENT):
                segment, t = i >> segment_log2, i & (SEGMENT - 1)
                for k in range(per_thread):
                    j = i * per_thread + k
                    if j < width:
                        if ti.static(turns):
                            a[floats.activation + j] = combine_runs(a, floats.activated, j)
                        else:
                            a[floats.activation + j] = activated(a, layer, j)
                first = floats.activation + segment * segments[Site.DOWN].length
                collect(a, first, a, integers, layer, Site.DOWN, segment, t, 0.0)
            ti.loop_config(block_dim=block_dims[Site.DOWN])
            for i in range(threads[Site.DOWN]):
                multiply(i, quants, headers, a, integers, layer, Site.DOWN, floats.activation, 0.0)

    @ti.kernel
    def end_token(
        head_words: array_of(head.element), head_scales: array_of(head.element), a: array_of(ti.f32),
        integers: array_of(ti.i32), logits: array_of(ti.f32), results: array_of(ti.i32), step: ti.i32,
    ):  # fmt: skip
        """Logits [tiles * 64]; among the results [MOST_TOKENS + layers * SITE_COUNT] the best token of this step of a
        run, and its numbers of active inputs, added to those of the steps before.
        """
        if ti.static(after_norms[Site.DOWN] >= 0):
            ti.loop_config(block_dim=NORM_GROUP)
            for i in range(norm_threads):
                take_output(a, layers - 1, Site.DOWN, i)
        ti.loop_config(block_dim=NORM_GROUP)
        for i in range(norm_threads):
            add_residual(a, layers - 1, Site.DOWN, i)
        ti.loop_config(block_dim=SEGMENT)
        for i in range(input_threads):
            normalise(a, floats.constants + constants.final_norm, True, i)
        if ti.static(head.product_threads > 0):
            ti.loop_config(block_dim=head.product_group)
            for i in range(head.product_threads):
                multiply_head(i, head_words, head_scales, a, floats.x, integers)
        ti.loop_config(block_dim=HEAD_THREADS)
        for i in range(head.score_threads):
            best = ti.static(Best(a, floats.best, integers, ints.best_rows))
            score(i, head_words, head_scales, a, floats.x, logits, best)
        ti.loop_config(block_dim=HEAD_THREADS)
        for t in range(HEAD_THREADS):
            token = best_token(ti.static(Best(a, floats.best, integers, ints.best_rows)), t)
            if t == 0:
                integers[ints.best] = ti.max(token, 0)
                results[step] = token
        ti.loop_config(block_dim=_SPREAD)
        for i in range(count_threads):
            if i < layers * SITE_COUNT:
                before = 0
                if step > 0:
                    before = results[MOST_TOKENS + i]
                results[MOST_TOKENS + i] = before + integers[ints.counts + i]

    return begin_token, run_layer, end_token
