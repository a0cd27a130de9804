"""The kernels of prefill: embed a chunk of tokens, put it through one block, compute logits.

As in the decode step every worker runs the whole kernel and waits for the others at a spin barrier; here the work is
split by rows of a matrix or by tokens.
"""

from spqt_ti.backend import ti
from spqt_ti.kernels.cpu.attention import CacheShape, make_attend, make_writers
from spqt_ti.kernels.cpu.head import make_head
from spqt_ti.kernels.cpu.matmul import TILE_VECTORS, make_matmul, make_vocabulary_matmul
from spqt_ti.kernels.cpu.norm import scaled_copy, square_sum
from spqt_ti.kernels.cpu.rope import rotate
from spqt_ti.kernels.cpu.vectors import array_of, exp_lanes, f16x16, f32x16, u32x4, u32x8, u32x16, value
from spqt_ti.kernels.cpu.workers import make_wait_for_all, share_start
from spqt_ti.model.cpu.plans import SITE_TABLE, ChunkPlan
from spqt_ti.model.cpu.weights import SITE_FIELDS, Weights
from spqt_ti.model.gates import GatePlan

COLS, FULL_BANDS, TAIL_BANDS, PANEL_BANDS, BANDS, QUANTS, TAIL, HEADERS, BIAS = range(len(SITE_FIELDS))
SITE_STRIDE = len(SITE_FIELDS)


def make_prefill_kernels(weights: Weights, cache_shape: CacheShape, plan: ChunkPlan, gate_plan: GatePlan, workers: int):
    """The kernels (embed tokens, run one block, compute logits) for a model of these shapes."""
    config = weights.config
    hidden, width = config.hidden_size // 16, config.intermediate_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, group, attention = head_dim // 16, heads // kv_heads, heads * head_dim // 16
    eps = config.rms_norm_eps
    wait_for_all = make_wait_for_all()
    attention_norm, ffn_norm = weights.layer_constants["attention_norm"], weights.layer_constants["ffn_norm"]
    constants_stride, final_norm, rope = weights.constants_stride, weights.final_norm, weights.rope
    quants_stride, tail_stride, headers_stride = weights.quants_stride, weights.tail_stride, weights.headers_stride
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    inputs, output, stride = plan.inputs, plan.output, plan.output_stride
    head_tile, tiles = weights.head_tile, weights.vocabulary_tiles
    _, embed = make_head(config.hidden_size)
    matmul = make_matmul(workers)
    attend, (write_key, write_value) = make_attend(cache_shape, group), make_writers(cache_shape)
    vocabulary_matmul = make_vocabulary_matmul(config.hidden_size, workers)

    @ti.func
    def multiply(
        quants: ti.template(), tail: ti.template(), headers: ti.template(), a: ti.template(), integers: ti.template(),
        layer, site, source, count, worker,
    ):  # fmt: skip
        """output = W input of a site for every token."""
        at = SITE_TABLE + site * SITE_STRIDE
        cols = integers[at + COLS]
        matmul(
            quants, layer * quants_stride + integers[at + QUANTS], tail, layer * tail_stride + integers[at + TAIL],
            headers, layer * headers_stride + integers[at + HEADERS], cols, integers[at + FULL_BANDS],
            integers[at + TAIL_BANDS], integers[at + PANEL_BANDS], a, plan.tiles + worker * TILE_VECTORS, source,
            cols >> 4, a, output, stride, count, worker,
        )  # fmt: skip

    @ti.func
    def biased(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, token, vector):
        """Vector `vector` of a site's output for a token, with the bias."""
        bias = integers[SITE_TABLE + site * SITE_STRIDE + BIAS]
        total = a[output + token * stride + vector]
        if bias >= 0:
            total += constants[layer * constants_stride + bias + vector]
        return total

    @ti.func
    def mask(a: ti.template(), gates: ti.template(), layer, site, first, vectors):
        """Zero what the decode step would skip."""
        place = layer * 4 + site
        threshold = value(gates, place)
        weighted = value(gates, gate_plan.weighted + place) > 0.0
        weights = gate_plan.weights + place * gate_plan.stride
        if threshold > 0.0:
            for i in range(vectors):
                v = a[first + i]
                score = ti.max(v, 0.0 - v)
                if weighted:
                    score = score * gates[weights + i]
                a[first + i] = f32x16(*[ti.select(score[k] > threshold, v[k], 0.0) for k in ti.static(range(16))])

    @ti.func
    def normalise(a: ti.template(), constants: ti.template(), weight, token, target):
        squares = square_sum(a, token * hidden, (token + 1) * hidden)
        factor = 1.0 / ti.sqrt(squares / (hidden * 16) + eps)
        scaled_copy(a, token * hidden, constants, weight, factor, target + token * hidden, hidden)

    @ti.func
    def normalise_share(
        a: ti.template(), constants: ti.template(), gates: ti.template(), layer, site, weight, target, count,
        masked, worker,
    ):  # fmt: skip
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            normalise(a, constants, weight, token, target)
            if masked == 1:
                mask(a, gates, layer, site, target + token * hidden, hidden)

    @ti.func
    def place_heads(
        a: ti.template(),
        constants: ti.template(),
        integers: ti.template(),
        cache: ti.template(),
        layer,
        start,
        count,
        worker,
    ):
        """Bias and rotate the worker's heads in place for every token; put k and v into the cache."""
        for head in range(
            share_start(heads + 2 * kv_heads, worker, workers), share_start(heads + 2 * kv_heads, worker + 1, workers)
        ):
            keys = layer * cache_layer + (head - heads) * 2 * half_stride
            values = keys - kv_heads * 2 * half_stride + half_stride
            for token in range(count):
                at = output + token * stride + head * head_vectors
                for d in range(head_vectors):
                    a[at + d] = biased(a, constants, integers, layer, 0, token, head * head_vectors + d)
                if head < heads + kv_heads:
                    rotate(a, at * 16, constants, rope * 16 + (start + token) * head_dim, head_dim // 2)
                if head >= heads and head < heads + kv_heads:
                    write_key(cache, keys, start + token, a, at * 16)
                if head >= heads + kv_heads:
                    write_value(cache, values, start + token, a, at)

    @ti.func
    def attend_tokens(
        a: ti.template(), cache: ti.template(), gates: ti.template(), layer, start, count, masked, worker
    ):
        """Attention of every head for every `workers`-th token: later tokens see more positions, so shares are
        interleaved.
        """
        for i in range((count + workers - 1 - worker) // workers):
            token = i * workers + worker
            position = start + token
            for kv_head in range(kv_heads):
                head = kv_head * group
                keys = layer * cache_layer + kv_head * 2 * half_stride
                out = inputs[1] + token * attention + head * head_vectors
                softmax = plan.softmax + worker * group
                attend(
                    cache, keys, keys + half_stride, a, output + token * stride + head * head_vectors, 0,
                    (position >> 4) + 1, position, plan.scores + worker * plan.scores_stride, out, softmax,
                )  # fmt: skip
                for h in range(group):
                    for d in range(head_vectors):
                        at = out + h * head_vectors + d
                        a[at] = a[at] / a[softmax + h][1]
            if masked == 1:
                mask(a, gates, layer, 1, inputs[1] + token * attention, attention)

    @ti.func
    def add_residual(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, count, worker):
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            for i in range(hidden):
                a[token * hidden + i] = a[token * hidden + i] + biased(a, constants, integers, layer, site, token, i)

    @ti.func
    def gate(
        a: ti.template(), constants: ti.template(), integers: ti.template(), gates: ti.template(), layer, count,
        masked, worker,
    ):  # fmt: skip
        """Input of down: silu(gate) * up."""
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            at = inputs[3] + token * width
            for i in range(width):
                g = biased(a, constants, integers, layer, 2, token, i)
                up = biased(a, constants, integers, layer, 2, token, width + i)
                a[at + i] = g / (1.0 + exp_lanes(0.0 - g)) * up
            if masked == 1:
                mask(a, gates, layer, 3, at, width)

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
    def run_block(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), constants: array_of(f32x16),
        cache: array_of(cache_shape.dtype), a: array_of(f32x16), integers: array_of(ti.i32), gates: array_of(f32x16),
        layer: ti.i32, start: ti.i32, count: ti.i32, masked: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            norms = layer * constants_stride
            arrived = 0
            for site in range(4):
                source = inputs[0]
                if site == 1:
                    source = inputs[1]
                    attend_tokens(a, cache, gates, layer, start, count, masked, worker)
                elif site == 3:
                    source = inputs[3]
                    gate(a, constants, integers, gates, layer, count, masked, worker)
                else:
                    source = ti.select(site == 0, inputs[0], inputs[2])
                    norm = norms + ti.select(site == 0, attention_norm, ffn_norm)
                    normalise_share(a, constants, gates, layer, site, norm, source, count, masked, worker)
                arrived += workers
                wait_for_all(integers, 0, arrived)
                multiply(quants, tail, headers, a, integers, layer, site, source, count, worker)
                arrived += workers
                wait_for_all(integers, 0, arrived)
                if site == 0:
                    place_heads(a, constants, integers, cache, layer, start, count, worker)
                    arrived += workers
                    wait_for_all(integers, 0, arrived)
                elif site != 2:
                    add_residual(a, constants, integers, layer, site, count, worker)

    @ti.kernel
    def score_tokens(
        words: array_of(u32x16), scales: array_of(f16x16), constants: array_of(f32x16), a: array_of(f32x16),
        first: ti.i32, count: ti.i32,
    ):  # fmt: skip
        # The normalised states go where the blocks' first inputs were.
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for token in range(
                first + share_start(count, worker, workers), first + share_start(count, worker + 1, workers)
            ):
                normalise(a, constants, final_norm, token, inputs[0])
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            vocabulary_matmul(
                words, scales, head_tile, tiles, a, plan.tiles + worker * TILE_VECTORS,
                inputs[0] + first * hidden, hidden, a, plan.logits, tiles * 4, count, worker,
            )  # fmt: skip

    return embed_tokens, run_block, score_tokens
