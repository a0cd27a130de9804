"""The kernel of the decode step: tokens through every block, one after the other, each worker running the whole of it.

Where a phase needs what other workers wrote, all wait at a spin barrier; what is cheap (a norm, an index list) every
worker computes for itself instead of waiting for another.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.attention import LOWEST, CacheShape, make_attend, make_writers
from spqt_ti.kernels.cpu.block_sums import WORKSPACE_INTEGERS
from spqt_ti.kernels.cpu.collect import make_collect
from spqt_ti.kernels.cpu.gemv import SCRATCH_VECTORS, make_gemv
from spqt_ti.kernels.cpu.head import make_head
from spqt_ti.kernels.cpu.norm import scaled_copy, square_sum
from spqt_ti.kernels.cpu.rope import rotate
from spqt_ti.kernels.cpu.stopwatch import make_stopwatch
from spqt_ti.kernels.cpu.vectors import array_of, exp_lanes, f16x16, f32x16, u32x4, u32x8, u32x16, value
from spqt_ti.kernels.cpu.workers import make_wait_for_all, share_start
from spqt_ti.model.cpu.plans import SITE_TABLE, IntegerPlan, Scratch
from spqt_ti.model.cpu.weights import SITE_FIELDS, Weights
from spqt_ti.model.gates import GatePlan

# What the profile tells apart; the GEMVs in the order of SITES.
PHASES = (
    "embedding", "norm", "collect", "gemv qkv", "gemv o", "gemv gate_up", "gemv down", "rope and cache", "attention",
    "residual", "swiglu", "wait for workers", "head",
)  # fmt: skip
EMBEDDING, NORM, COLLECT, GEMV, _, _, _, ROPE, ATTENTION, RESIDUAL, SWIGLU, WAIT, HEAD = range(len(PHASES))

COLS, FULL_BANDS, TAIL_BANDS, PANEL_BANDS, BANDS, QUANTS, TAIL, HEADERS, BIAS = range(len(SITE_FIELDS))
SITE_STRIDE = len(SITE_FIELDS)


def make_decode_kernel(
    weights: Weights, cache_shape: CacheShape, scratch: Scratch, ints: IntegerPlan, gate_plan: GatePlan, workers: int,
    exact: bool, profile: bool = False,
):  # fmt: skip
    """The decode step of a model of these shapes, for a fixed number of workers; `exact`: in f32 throughout; `profile`:
    worker 0 adds the clock ticks of each of PHASES to its last argument.

    A launch decodes `token` and then, `steps` - 1 times, the best token after the one before.
    """
    config = weights.config
    layers, hidden, width = config.num_hidden_layers, config.hidden_size // 16, config.intermediate_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, group = head_dim // 16, heads // kv_heads
    eps = config.rms_norm_eps
    wait_for_all = make_wait_for_all()
    attention_norm, ffn_norm = weights.layer_constants["attention_norm"], weights.layer_constants["ffn_norm"]
    constants_stride, final_norm, rope = weights.constants_stride, weights.final_norm, weights.rope
    quants_stride, tail_stride, headers_stride = weights.quants_stride, weights.tail_stride, weights.headers_stride
    tiles, head_tile, vocabulary = weights.vocabulary_tiles, weights.head_tile, config.vocab_size
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    logits_tile, embed = make_head(config.hidden_size)
    gemv = make_gemv(workers, exact)
    collect, collect_weighted = make_collect()
    attend, (write_key, write_value) = make_attend(cache_shape, group), make_writers(cache_shape)
    read_clock, mark = make_stopwatch(profile)

    @ti.func
    def summed(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, vector):
        """Vector `vector` of a site's output: the workers' partial sums in worker order, plus the bias."""
        stride = integers[SITE_TABLE + site * SITE_STRIDE + BANDS] * 16
        bias = integers[SITE_TABLE + site * SITE_STRIDE + BIAS]
        total = a[scratch.partial + vector]
        for w in range(1, workers):
            total += a[scratch.partial + w * stride + vector]
        if bias >= 0:
            total += constants[layer * constants_stride + bias + vector]
        return total

    @ti.func
    def multiply(
        quants: ti.template(), tail: ti.template(), headers: ti.template(),
        quants_address, tail_address, headers_address, a: ti.template(),
        integers: ti.template(), integers_address, gates: ti.template(), layer, site, x, workspace, worker,
        ticks: ti.template(), last_mark: ti.template(),
    ):  # fmt: skip
        """Collect the active inputs of a site, x beginning at vector a[x], and multiply its matrix by them."""
        at = SITE_TABLE + site * SITE_STRIDE
        cols = integers[at + COLS]
        threshold = value(gates, layer * 4 + site)
        active = ints.everything
        count = cols
        if threshold > 0.0:
            active = ints.lists + worker * ints.list_stride
            if value(gates, gate_plan.weighted + layer * 4 + site) > 0.0:
                first = gate_plan.weights + (layer * 4 + site) * gate_plan.stride
                count = collect_weighted(a, x, gates, first, cols >> 4, threshold, integers, integers_address, active)
            else:
                count = collect(a, x, cols >> 4, threshold, integers, integers_address, active)
        if worker == 0:
            integers[ints.counts + layer * 4 + site] += count
        mark(ticks, last_mark, COLLECT, worker)
        gemv(
            quants, layer * quants_stride + integers[at + QUANTS], tail, layer * tail_stride + integers[at + TAIL],
            headers, layer * headers_stride + integers[at + HEADERS], quants_address, tail_address, headers_address,
            cols, integers[at + FULL_BANDS], integers[at + TAIL_BANDS], integers[at + PANEL_BANDS], a, x,
            integers, active, count, workspace, a, scratch.partial, scratch.gemv + worker * SCRATCH_VECTORS, worker,
        )  # fmt: skip
        mark(ticks, last_mark, GEMV + site, worker)

    @ti.func
    def normalised(a: ti.template(), constants: ti.template(), weight, x):
        """The worker's own copy, at a[x], of RMSNorm(hidden)."""
        squares = 0.0
        # A loop at run time, not an unrolled one: Taichi would reuse what an earlier phase loaded from a constant
        # address, although another worker has written there since.
        for w in range(workers):
            squares += a[scratch.squares + w][0]
        factor = 1.0 / ti.sqrt(squares / (hidden * 16) + eps)
        scaled_copy(a, scratch.hidden, constants, weight, factor, x, hidden)

    @ti.func
    def add_residual(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, worker):
        """hidden += output of the site, on the worker's share of hidden; leaves its sum of squares."""
        first = share_start(hidden, worker, workers)
        last = share_start(hidden, worker + 1, workers)
        for i in range(first, last):
            a[scratch.hidden + i] = a[scratch.hidden + i] + summed(a, constants, integers, layer, site, i)
        a[scratch.squares + worker][0] = square_sum(a, scratch.hidden + first, scratch.hidden + last)

    @ti.func
    def place_heads(
        a: ti.template(),
        constants: ti.template(),
        integers: ti.template(),
        cache: ti.template(),
        layer,
        position,
        worker,
    ):
        """Sum q, k, v of the worker's heads, rotate q and k, and put k and v into the cache."""
        row = (rope * 16) + position * head_dim
        for head in range(
            share_start(heads + 2 * kv_heads, worker, workers), share_start(heads + 2 * kv_heads, worker + 1, workers)
        ):
            start = scratch.query + head * head_vectors
            for d in range(head_vectors):
                a[start + d] = summed(a, constants, integers, layer, 0, head * head_vectors + d)
            if head < heads + kv_heads:
                rotate(a, start * 16, constants, row, head_dim // 2)
            keys = layer * cache_layer + (head - heads) * 2 * half_stride
            if head >= heads and head < heads + kv_heads:
                write_key(cache, keys, position, a, start * 16)
            if head >= heads + kv_heads:
                write_value(cache, keys - kv_heads * 2 * half_stride + half_stride, position, a, start)

    @ti.func
    def attend_share(a: ti.template(), cache: ti.template(), layer, position, worker):
        """Every head over the worker's share of the positions."""
        blocks = (position >> 4) + 1
        first = share_start(blocks, worker, workers)
        last = share_start(blocks, worker + 1, workers)
        for kv_head in range(kv_heads):
            head = kv_head * group
            keys = layer * cache_layer + kv_head * 2 * half_stride
            attend(
                cache, keys, keys + half_stride, a, scratch.query + head * head_vectors, first, last, position,
                scratch.scores + worker * scratch.scores_stride,
                scratch.heads + (worker * heads + head) * head_vectors, scratch.softmax + worker * heads + head,
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
    def gate(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, worker):
        """activation = silu(gate) * up on the worker's share."""
        for i in range(share_start(width, worker, workers), share_start(width, worker + 1, workers)):
            g = summed(a, constants, integers, layer, 2, i)
            up = summed(a, constants, integers, layer, 2, width + i)
            a[scratch.activation + i] = g / (1.0 + exp_lanes(0.0 - g)) * up

    @ti.func
    def score_vocabulary(words: ti.template(), scales: ti.template(), a: ti.template(), x, worker):
        """Logits of the worker's share of the vocabulary, and the best of them."""
        best = -3.0e38
        best_row = 0
        for t in range(share_start(tiles, worker, workers), share_start(tiles, worker + 1, workers)):
            logits_tile(words, scales, head_tile + t, a, x, a, scratch.logits + t * 4)
            for b in range(4):
                logits = a[scratch.logits + t * 4 + b]
                for i in ti.static(range(16)):
                    if logits[i] > best and t * 64 + b * 16 + i < vocabulary:
                        best = logits[i]
                        best_row = t * 64 + b * 16 + i
        a[scratch.best + worker][0] = best
        a[scratch.best + worker][1] = ti.cast(best_row, ti.f32)

    @ti.func
    def decode_one(
        quants: ti.template(), tail: ti.template(), headers: ti.template(), words: ti.template(), scales: ti.template(),
        constants: ti.template(), cache: ti.template(), a: ti.template(), integers: ti.template(),
        gates: ti.template(), quants_address, tail_address, headers_address, integers_address, token, position,
        workspace, worker, before, ticks: ti.template(), last_mark: ti.template(),
    ):  # fmt: skip
        """A token through every block and the head. `before`, and what it returns: arrivals at the barrier so far."""
        arrived = before
        x = scratch.inputs + worker * scratch.input_stride
        first = share_start(hidden, worker, workers)
        last = share_start(hidden, worker + 1, workers)
        for i in range(first, last):
            a[scratch.hidden + i] = embed(words, scales, token, i)
        a[scratch.squares + worker][0] = square_sum(a, scratch.hidden + first, scratch.hidden + last)
        mark(ticks, last_mark, EMBEDDING, worker)
        arrived += workers
        wait_for_all(integers, 0, arrived)
        mark(ticks, last_mark, WAIT, worker)
        for layer in range(layers):
            for site in range(4):
                source = x
                if site == 1:
                    join_heads(a, x)
                    mark(ticks, last_mark, ATTENTION, worker)
                elif site == 3:
                    source = scratch.activation
                else:
                    norm = ti.select(site == 0, attention_norm, ffn_norm)
                    normalised(a, constants, layer * constants_stride + norm, x)
                    mark(ticks, last_mark, NORM, worker)
                multiply(
                    quants, tail, headers, quants_address, tail_address, headers_address, a, integers,
                    integers_address, gates, layer, site, source, workspace, worker, ticks, last_mark,
                )  # fmt: skip
                arrived += workers
                wait_for_all(integers, 0, arrived)
                mark(ticks, last_mark, WAIT, worker)
                if site == 0:
                    place_heads(a, constants, integers, cache, layer, position, worker)
                    mark(ticks, last_mark, ROPE, worker)
                    arrived += workers
                    wait_for_all(integers, 0, arrived)
                    mark(ticks, last_mark, WAIT, worker)
                    attend_share(a, cache, layer, position, worker)
                    mark(ticks, last_mark, ATTENTION, worker)
                elif site == 2:
                    gate(a, constants, integers, layer, worker)
                    mark(ticks, last_mark, SWIGLU, worker)
                else:
                    add_residual(a, constants, integers, layer, site, worker)
                    mark(ticks, last_mark, RESIDUAL, worker)
                arrived += workers
                wait_for_all(integers, 0, arrived)
                mark(ticks, last_mark, WAIT, worker)
        normalised(a, constants, final_norm, x)
        mark(ticks, last_mark, NORM, worker)
        score_vocabulary(words, scales, a, x, worker)
        mark(ticks, last_mark, HEAD, worker)
        arrived += workers
        wait_for_all(integers, 0, arrived)
        mark(ticks, last_mark, WAIT, worker)
        return arrived

    @ti.func
    def best_token(a: ti.template()):
        """The token with the highest logit, the lowest id among equals."""
        best = -3.0e38
        token = 0
        for w in range(workers):
            if a[scratch.best + w][0] > best:
                best = a[scratch.best + w][0]
                token = ti.cast(a[scratch.best + w][1], ti.i32)
        return token

    @ti.kernel
    def decode_tokens(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), words: array_of(u32x16),
        scales: array_of(f16x16), constants: array_of(f32x16), cache: array_of(cache_shape.dtype), a: array_of(f32x16),
        integers: array_of(ti.i32), gates: array_of(f32x16), quants_address: ti.i64, tail_address: ti.i64,
        headers_address: ti.i64,
        integers_address: ti.i64, token: ti.i32, position: ti.i32, steps: ti.i32, ticks: array_of(ti.i64),
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            arrived = 0
            last_mark = read_clock()
            workspace = integers_address + ti.cast((ints.workspaces + worker * WORKSPACE_INTEGERS) * 4, ti.i64)
            last = token
            for step in range(steps):
                arrived = decode_one(
                    quants, tail, headers, words, scales, constants, cache, a, integers, gates, quants_address,
                    tail_address, headers_address, integers_address, last, position + step, workspace, worker, arrived,
                    ticks, last_mark,
                )  # fmt: skip
                last = best_token(a)
                if worker == 0:
                    integers[ints.tokens + step] = last

    return decode_tokens
