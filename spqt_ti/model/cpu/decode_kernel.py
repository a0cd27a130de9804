"""The kernel of the decode step: tokens through every layer, one after the other, each worker running the whole of it.

Where a phase needs what other workers wrote, all wait at a spin barrier; what is cheap (a norm, an index list) every
worker computes for itself instead of waiting for another.
"""

import functools
from enum import IntEnum
from typing import Any, NamedTuple

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.attention import LOWEST, CacheShape, Offsets, make_attend
from spqt_ti.kernels.cpu.collect import make_collect
from spqt_ti.kernels.cpu.head import make_head
from spqt_ti.kernels.cpu.heads import make_first_seen, make_normalise_head, make_place_head
from spqt_ti.kernels.cpu.norm import scaled_copy, square_sum
from spqt_ti.kernels.cpu.stopwatch import Clock, make_stopwatch
from spqt_ti.kernels.cpu.tile_sums import WORKSPACE_INTEGERS
from spqt_ti.kernels.cpu.vectors import array_of, exp_lanes, f16x16, f32x16, lane_sum, u32x4, u32x8, u32x16, value
from spqt_ti.kernels.cpu.workers import make_wait_for_all, share_start
from spqt_ti.kernels.shared.activation import make_activate
from spqt_ti.kernels.shared.words import INFINITY_BITS
from spqt_ti.model.cpu.maps import POSITION, STEPS, TOKEN, IntegerMap, Long, Scratch, site_row
from spqt_ti.model.cpu.neuron_map import NeuronMap
from spqt_ti.model.cpu.neuron_phases import make_neuron_phases
from spqt_ti.model.cpu.online_rotation import make_rotate_down
from spqt_ti.model.cpu.products import make_decode_product, make_head_product, multiplied_kinds
from spqt_ti.model.cpu.weights import SiteField, WeightMap
from spqt_ti.model.sites import SITE_COUNT, Site


class Phase(IntEnum):
    """What the profile tells apart; the GEMVs in the order of SITES."""

    EMBEDDING = 0
    NORM = 1
    COLLECT = 2
    GEMV_QKV = 3
    GEMV_O = 4
    GEMV_GATE_UP = 5
    GEMV_DOWN = 6
    ROPE_AND_CACHE = 7
    ATTENTION = 8
    RESIDUAL = 9
    SWIGLU = 10
    WAIT_FOR_WORKERS = 11
    HEAD = 12
    PREDICTOR = 13
    GATE_ROWS = 14
    UP_ROWS = 15
    ROTATION = 16

    @property
    def label(self) -> str:
        """In a table: "gemv gate_up", "rope and cache"."""
        name = self.name.lower()
        return name.replace("_", " ", 1) if name.startswith("gemv") else name.replace("_", " ")


class Launch(NamedTuple):
    """What a worker's part of a launch works on: the arrays of `decode_tokens`, their addresses, what is its own."""

    quants: Any
    tail: Any
    headers: Any
    words: Any
    scales: Any
    constants: Any
    cache: Any
    a: Any
    integers: Any
    quants_address: Any
    tail_address: Any
    headers_address: Any
    integers_address: Any
    workspace: Any
    clock: Clock
    worker: Any


@functools.cache
def make_decode_kernel(
    weights: WeightMap, cache_shape: CacheShape, scratch: Scratch, ints: IntegerMap, workers: int, exact: bool,
    profile: bool = False, neurons: NeuronMap | None = None,
):  # fmt: skip
    """The decode step of a model of these shapes, for a fixed number of workers; `exact`: in f32 throughout; `profile`:
    worker 0 adds the clock ticks of each Phase to `longs`; `neurons`: of layers that have predictors.

    A launch decodes a token and then, STEPS - 1 times, the best token after the one before.
    """
    config = weights.config
    layers, hidden = config.num_hidden_layers, config.hidden_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, queries_per_kv = head_dim // 16, heads // kv_heads
    eps = config.rms_norm_eps
    wait_for_all = make_wait_for_all()
    attention_norm, ffn_norm = weights.layer_constant("attention_norm"), weights.layer_constant("ffn_norm")
    after_attention = weights.layer_constant("after_attention_norm")
    normalises_before = attention_norm is not None
    after_ffn, normalises_after = weights.layer_constant("after_ffn_norm"), after_attention is not None
    scales, whole_norm = config.scales, weights.head_constants.whole
    constants_stride, final_norm = weights.constants_stride, weights.final_norm
    selectors, selector_map = weights.selectors, weights.selector_map
    tiles, head_tile, vocabulary = weights.vocabulary_tiles, weights.head_tile, config.vocab_size
    # A factor that makes infinity of what the cache cannot hold: an f16 ends at 65504.
    overflow = 3.4028234e38 / 65504.0 if cache_shape.half else 1.0
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    logits_tile, embed = make_head(config.hidden_size, scales.embedding)
    # What a model has not compiles to nothing: asked in an `if` of its own, as Taichi compiles both sides of `and`.
    kinds = weights.matrices.kinds
    numbers = multiplied_kinds(weights, neurons is not None)
    products = [make_decode_product(kinds[number], weights, scratch, workers, exact) for number in numbers]
    zigzag_kinds = sum(not kind.rows for kind in kinds)  # they are the first
    has_rows, head_map = zigzag_kinds < len(kinds), weights.matrices.head
    tiled_head = head_map is None
    head_product: Any = head_map and make_head_product(head_map, scratch, ints, workers, exact)
    one_kind, logit_vectors = len(products) == 1, weights.logit_vectors
    collect, collect_weighted = make_collect()
    windowed = weights.head_constants.window is not None
    attend = make_attend(cache_shape, queries_per_kv, windowed, scales.attention, scales.attention_cap)
    place_head = make_place_head(cache_shape, heads, weights.head_constants)
    whole_factors, normalise_head = make_normalise_head(head_dim, heads, kv_heads, weights.head_constants)
    first_seen = make_first_seen(weights.head_constants)
    activate = make_activate(config.hidden_act, exp_lanes, config.hidden_act_param, config.architecture.activates_up)
    (read_clock, mark), predicts = make_stopwatch(profile), neurons is not None

    @ti.func
    def mark_rows(clock: ti.template(), part):
        mark(clock, ti.select(part == 0, ti.static(int(Phase.COLLECT)), ti.static(int(Phase.GATE_ROWS) - 1) + part))

    phases: Any = neurons and make_neuron_phases(neurons, weights, scratch, ints, workers, exact, mark_rows)

    @ti.func
    def summed(d: ti.template(), layer, site, vector):
        """Vector `vector` of a site's output: the workers' partial sums in worker order, plus the bias."""
        at = site_row(layer, site)
        stride = d.integers[at + SiteField.BANDS] * 16
        bias = d.integers[at + SiteField.BIAS]
        total = d.a[scratch.partial + vector]
        parts = workers
        if ti.static(has_rows):  # noqa: SIM102
            if d.integers[at + SiteField.KIND] >= zigzag_kinds:
                parts = 1
        for w in range(1, parts):
            total += d.a[scratch.partial + w * stride + vector]
        if bias >= 0:
            total += d.constants[layer * constants_stride + bias + vector]
        return total

    @ti.func
    def multiply(d: ti.template(), layer, site, x):
        """Collect the active inputs of a site, x beginning at vector a[x], and multiply its matrix by them."""
        at = site_row(layer, site)
        selector = layer * SITE_COUNT + site
        cols = d.integers[at + SiteField.COLS]
        threshold = value(d.constants, selectors * 16 + selector)
        dense_up_to = 0.0  # threshold of a site that is read whole
        if ti.static(predicts):  # noqa: SIM102
            if site == Site.DOWN and d.integers[ints.predictors + layer] >= 0:  # neurons that are off are zero
                dense_up_to = -1.0
        if ti.static(has_rows):  # noqa: SIM102
            if d.integers[at + SiteField.KIND] >= zigzag_kinds:  # every input is read; the product masks them
                threshold = -1.0
        active = ints.everything
        count = cols
        if threshold > dense_up_to:
            active = ints.lists + d.worker * ints.list_stride
            if value(d.constants, (selectors * 16 + selector_map.weighted) + selector) > 0.0:
                first = selectors + selector_map.weights + selector * selector_map.stride
                count = collect_weighted(
                    d.a, x, d.constants, first, cols >> 4, threshold, d.integers, d.integers_address, active
                )
            else:
                count = collect(d.a, x, cols >> 4, threshold, d.integers, d.integers_address, active)
        if d.worker == 0:
            d.integers[ints.counts + selector] += count
        mark(d.clock, Phase.COLLECT)
        if ti.static(one_kind):
            products[0](d, at, selector, x, active, count)
        else:
            for k in ti.static(range(len(products))):
                if d.integers[at + SiteField.KIND] == numbers[k]:
                    products[k](d, at, selector, x, active, count)
        mark(d.clock, Phase.GEMV_QKV + site)

    @ti.func
    def normalised(d: ti.template(), weight, x):
        """The worker's own copy, at a[x], of RMSNorm(hidden)."""
        squares = 0.0
        # A loop at run time, not an unrolled one: Taichi would reuse what an earlier phase loaded from a constant
        # address, although another worker has written there since.
        for w in range(workers):
            squares += d.a[scratch.squares + w][0]
        factor = 1.0 / ti.sqrt(squares / (hidden * 16) + eps)
        scaled_copy(d.a, scratch.hidden, d.constants, weight, factor, x, hidden)

    @ti.func
    def add_normalised(d: ti.template(), layer, site, first, last, arrived: ti.template()):
        """hidden += RMSNorm(output of the site), on vectors first..last-1, which are the worker's."""
        for i in range(first, last):
            d.a[scratch.partial + i] = summed(d, layer, site, i)
        d.a[scratch.after + d.worker][0] = square_sum(d.a, scratch.partial + first, scratch.partial + last)
        wait(d, arrived)
        squares = 0.0
        for w in range(workers):
            squares += d.a[scratch.after + w][0]
        factor = scales.residual / ti.sqrt(squares / (hidden * 16) + eps)
        weight = layer * constants_stride + ti.select(site == Site.O, after_attention, after_ffn)
        for i in range(first, last):
            added = (d.a[scratch.partial + i] * factor) * d.constants[weight + i]
            d.a[scratch.hidden + i] = d.a[scratch.hidden + i] + added

    @ti.func
    def add_residual(d: ti.template(), layer, site, arrived: ti.template()):
        """hidden += output of the site, on the worker's share of hidden; leaves its sum of squares."""
        first = share_start(hidden, d.worker, workers)
        last = share_start(hidden, d.worker + 1, workers)
        if ti.static(normalises_after):
            add_normalised(d, layer, site, first, last, arrived)
        else:
            for i in range(first, last):
                added = summed(d, layer, site, i)
                if ti.static(scales.residual != 1.0):
                    added *= scales.residual
                d.a[scratch.hidden + i] = d.a[scratch.hidden + i] + added
        d.a[scratch.squares + d.worker][0] = square_sum(d.a, scratch.hidden + first, scratch.hidden + last)

    @ti.func
    def sum_heads(d: ti.template(), layer, arrived: ti.template()):
        """Sum q, k, v of the worker's heads; returns the factors of the norms of all of q and all of k."""
        q_squares, k_squares = 0.0, 0.0
        first = share_start(heads + 2 * kv_heads, d.worker, workers)
        for head in range(first, share_start(heads + 2 * kv_heads, d.worker + 1, workers)):
            start = scratch.query + head * head_vectors
            for i in range(head_vectors):
                d.a[start + i] = summed(d, layer, Site.QKV, head * head_vectors + i)
            squares = square_sum(d.a, start, start + head_vectors)
            if head < heads:
                q_squares += squares
            elif head < heads + kv_heads:
                k_squares += squares
        d.a[scratch.after + d.worker][0] = q_squares
        d.a[scratch.after + d.worker][1] = k_squares
        wait(d, arrived)
        q_squares, k_squares = 0.0, 0.0
        for w in range(workers):
            q_squares += d.a[scratch.after + w][0]
            k_squares += d.a[scratch.after + w][1]
        return whole_factors(q_squares, k_squares)

    @ti.func
    def place_heads(d: ti.template(), layer, position, seen: ti.template(), arrived: ti.template()):
        """Sum q, k, v of the worker's heads, and place them. `seen` becomes infinite or NaN where the cache cannot hold
        one of them.
        """
        q_factor, k_factor = 1.0, 1.0
        if ti.static(whole_norm):
            q_factor, k_factor = sum_heads(d, layer, arrived)
        first = share_start(heads + 2 * kv_heads, d.worker, workers)
        for head in range(first, share_start(heads + 2 * kv_heads, d.worker + 1, workers)):
            start = scratch.query + head * head_vectors
            if ti.static(whole_norm):
                normalise_head(d.a, start, d.constants, layer, head, q_factor, k_factor)
            else:
                for i in range(head_vectors):
                    d.a[start + i] = summed(d, layer, Site.QKV, head * head_vectors + i)
            place_head(d.a, start, d.constants, d.cache, layer, head, position)
            if head >= heads:
                held = f32x16(0.0)
                for i in range(head_vectors):
                    held += d.a[start + i] * overflow * (1.0 / overflow)
                seen += lane_sum(held)

    @ti.func
    def attend_share(d: ti.template(), layer, position):
        """Every head over the worker's share of the positions."""
        begin = first_seen(d.constants, layer, position)
        pages = (position >> 4) + 1 - (begin >> 4)
        first = (begin >> 4) + share_start(pages, d.worker, workers)
        last = (begin >> 4) + share_start(pages, d.worker + 1, workers)
        for kv_head in range(kv_heads):
            head = kv_head * queries_per_kv
            keys = layer * cache_layer + kv_head * 2 * half_stride
            scores = scratch.scores + d.worker * scratch.scores_stride
            out = scratch.heads + (d.worker * heads + head) * head_vectors
            softmax = scratch.softmax + d.worker * heads + head
            attend(
                d.cache, keys, d.a, scratch.query + head * head_vectors, first, last, begin, position,
                ti.static(Offsets(scores, out, softmax)),
            )  # fmt: skip

    @ti.func
    def join_heads(a: ti.template(), x):
        """The worker's own copy, at a[x], of the attention output: every worker's share of the positions, weighed."""
        for head in range(heads):
            highest = LOWEST
            for w in range(workers):
                highest = ti.max(highest, a[scratch.softmax + w * heads + head][0])
            total = 0.0
            for w in range(workers):
                total += a[scratch.softmax + w * heads + head][1] * ti.exp(
                    a[scratch.softmax + w * heads + head][0] - highest
                )
            for d in range(head_vectors):
                a[x + head * head_vectors + d] = f32x16(0.0)
            for w in range(workers):
                weight = ti.exp(a[scratch.softmax + w * heads + head][0] - highest) / total
                for d in range(head_vectors):
                    at = x + head * head_vectors + d
                    a[at] = a[at] + weight * a[scratch.heads + (w * heads + head) * head_vectors + d]

    @ti.func
    def swiglu(d: ti.template(), layer):
        """The activation, input of down, on the worker's share; a layer may be narrower than others."""
        width = d.integers[site_row(layer, Site.DOWN) + SiteField.COLS] >> 4
        for i in range(share_start(width, d.worker, workers), share_start(width, d.worker + 1, workers)):
            g = summed(d, layer, Site.GATE_UP, i)
            up = summed(d, layer, Site.GATE_UP, width + i)
            d.a[scratch.activation + i] = activate(g, up)

    @ti.func
    def score_vocabulary(d: ti.template(), x, seen):
        """Logits of the worker's tiles of the vocabulary, and the best of them; their sum added to `seen` beside it."""
        total = f32x16(0.0)
        best = -3.0e38
        best_row = 0
        for t in range(share_start(tiles, d.worker, workers), share_start(tiles, d.worker + 1, workers)):
            logits_tile(d.words, d.scales, head_tile + t, d.a, x, d.a, scratch.logits + t * 4)
            for b in range(4):
                logits = d.a[scratch.logits + t * 4 + b]
                total += logits
                for i in ti.static(range(16)):
                    if logits[i] > best and t * 64 + b * 16 + i < vocabulary:
                        best = logits[i]
                        best_row = t * 64 + b * 16 + i
        d.a[scratch.best + d.worker][0] = best
        d.a[scratch.best + d.worker][1] = ti.cast(best_row, ti.f32)
        d.a[scratch.best + d.worker][2] = seen + lane_sum(total)

    @ti.func
    def find_best(d: ti.template(), seen):
        """The best of the worker's share of the logits, and their sum added to `seen`, as `score_vocabulary` has it."""
        total = f32x16(0.0)
        best = -3.0e38
        best_row = 0
        first = share_start(logit_vectors, d.worker, workers)
        for v in range(first, share_start(logit_vectors, d.worker + 1, workers)):
            logits = d.a[scratch.logits + v]
            total += logits
            for i in ti.static(range(16)):
                if logits[i] > best and v * 16 + i < vocabulary:
                    best = logits[i]
                    best_row = v * 16 + i
        d.a[scratch.best + d.worker][0] = best
        d.a[scratch.best + d.worker][1] = ti.cast(best_row, ti.f32)
        d.a[scratch.best + d.worker][2] = seen + lane_sum(total)

    @ti.func
    def wait(d: ti.template(), arrived: ti.template()):
        """`arrived`: arrivals at the barrier so far."""
        arrived += workers
        wait_for_all(d.integers, 0, arrived)
        mark(d.clock, Phase.WAIT_FOR_WORKERS)

    @ti.func
    def run_neurons(d: ti.template(), layer, x, arrived: ti.template()):
        """Input of down, of a layer that has gate and up in the row layout, from x at a[x]: by its predictor, or of all
        neurons where it has none.
        """
        index = d.integers[ints.predictors + layer]
        if index >= 0:
            for stage in range(2):  # at run time: the product compiles once
                phases.apply_factor(d, layer, index, stage, x)
                mark(d.clock, Phase.PREDICTOR)
                wait(d, arrived)
        phases.multiply_rows(d, layer, index, x)
        mark(d.clock, Phase.SWIGLU)
        if d.worker == 0:
            at = site_row(layer, Site.GATE_UP)
            d.integers[ints.counts + layer * SITE_COUNT + Site.GATE_UP] += d.integers[at + SiteField.COLS]

    @ti.func
    def multiply_all(d: ti.template(), layer, site, source, arrived: ti.template()):
        """The product of a site, and of gate and up what comes of it."""
        multiply(d, layer, site, source)
        wait(d, arrived)
        if site == Site.GATE_UP:
            swiglu(d, layer)
            mark(d.clock, Phase.SWIGLU)

    @ti.func
    def wait_turned(d: ti.template(), arrived: ti.template()):
        mark(d.clock, Phase.ROTATION)
        wait(d, arrived)

    rotate_down = make_rotate_down(weights, scratch, workers, wait_turned)

    @ti.func
    def decode_one(d: ti.template(), token, position, arrived: ti.template()):
        """A token through every layer and the head."""
        x = scratch.inputs + d.worker * scratch.input_stride
        seen = 0.0
        first = share_start(hidden, d.worker, workers)
        last = share_start(hidden, d.worker + 1, workers)
        for i in range(first, last):
            d.a[scratch.hidden + i] = embed(d.words, d.scales, token, i)
        d.a[scratch.squares + d.worker][0] = square_sum(d.a, scratch.hidden + first, scratch.hidden + last)
        mark(d.clock, Phase.EMBEDDING)
        wait(d, arrived)
        for layer in range(layers):
            for site in range(SITE_COUNT):
                source = x
                if site == Site.O:
                    join_heads(d.a, x)
                    mark(d.clock, Phase.ATTENTION)
                elif site == Site.DOWN:
                    source = scratch.activation
                    if ti.static(config.rotates_down):
                        rotate_down(d, layer, arrived)
                        source = scratch.rotated
                else:
                    if ti.static(not normalises_before):
                        for i in range(hidden):
                            d.a[x + i] = d.a[scratch.hidden + i]
                    else:
                        norm = ti.select(site == Site.QKV, attention_norm, ffn_norm)
                        normalised(d, layer * constants_stride + norm, x)
                    mark(d.clock, Phase.NORM)
                if ti.static(predicts):
                    if site == Site.GATE_UP and d.integers[site_row(layer, site) + SiteField.KIND] >= zigzag_kinds:
                        run_neurons(d, layer, source, arrived)
                    else:
                        multiply_all(d, layer, site, source, arrived)
                else:
                    multiply_all(d, layer, site, source, arrived)
                if site == Site.QKV:
                    place_heads(d, layer, position, seen, arrived)
                    mark(d.clock, Phase.ROPE_AND_CACHE)
                    wait(d, arrived)
                    attend_share(d, layer, position)
                    mark(d.clock, Phase.ATTENTION)
                elif site != Site.GATE_UP:
                    add_residual(d, layer, site, arrived)
                    mark(d.clock, Phase.RESIDUAL)
                wait(d, arrived)
        normalised(d, final_norm, x)
        mark(d.clock, Phase.NORM)
        if ti.static(tiled_head):
            score_vocabulary(d, x, seen)
        else:
            head_product(d, x)
            wait(d, arrived)
            find_best(d, seen)
        mark(d.clock, Phase.HEAD)
        wait(d, arrived)

    @ti.func
    def best_token(a: ti.template()):
        """The token with the highest logit, the lowest id among equals; -1 where something seen was not finite."""
        best = -3.0e38
        token = 0
        seen = 0.0
        for w in range(workers):
            seen += a[scratch.best + w][2]
            if a[scratch.best + w][0] > best:
                best = a[scratch.best + w][0]
                token = ti.cast(a[scratch.best + w][1], ti.i32)
        if ti.bit_cast(seen, ti.i32) & INFINITY_BITS == INFINITY_BITS:
            token = -1
        return token

    @ti.kernel
    def decode_tokens(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), words: array_of(u32x16),
        scales: array_of(f16x16), constants: array_of(f32x16), cache: array_of(cache_shape.dtype), a: array_of(f32x16),
        integers: array_of(ti.i32), longs: array_of(ti.i64),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            arrived = 0
            last_mark = read_clock()
            quants_address, tail_address = longs[Long.QUANTS], longs[Long.TAIL]
            headers_address, integers_address = longs[Long.HEADERS], longs[Long.INTEGERS]
            workspace = integers_address + ti.cast((ints.workspaces + worker * WORKSPACE_INTEGERS) * 4, ti.i64)
            d = ti.static(
                Launch(
                    quants, tail, headers, words, scales, constants, cache, a, integers, quants_address, tail_address,
                    headers_address, integers_address, workspace, Clock(longs, Long.TICKS, last_mark, worker), worker,
                )
            )  # fmt: skip
            token = integers[TOKEN]
            position = integers[POSITION]
            for step in range(integers[STEPS]):
                decode_one(d, token, position + step, arrived)
                best = best_token(a)
                if worker == 0:
                    integers[ints.tokens + step] = best
                token = ti.max(best, 0)

    return decode_tokens
