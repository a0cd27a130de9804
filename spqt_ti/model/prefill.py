"""Prefill: many tokens at once, densely, one persistent kernel launch per block.

A prompt is cut into chunks. For calibration and tests an observer sees every collected input, and `masked` zeroes the inputs that the decode step would
skip: every token is then treated as if it were decoded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.backend import host_view, ti
from spqt_ti.kernels.attention import CacheShape, attend, write_key, write_value
from spqt_ti.kernels.head import f16x16, make_head
from spqt_ti.kernels.matmul import TILE_VECTORS, TOKENS, make_matmul, make_vocabulary_matmul
from spqt_ti.kernels.norm import scaled_copy, square_sum
from spqt_ti.kernels.rope import rotate
from spqt_ti.kernels.vectors import array_of, exp_lanes, f32x16, u32x4, u32x8, u32x16
from spqt_ti.kernels.workers import share_start, wait_for_all
from spqt_ti.model.sites import SITES
from spqt_ti.model.weights import SITE_FIELDS, Weights

COLS, FULL_BANDS, TAIL_PAIRS, BANDS, QUANTS, TAIL, HEADERS, BIAS = range(len(SITE_FIELDS))
TABLE = 16  # of the integers: Weights.site_table; the barrier's counter is element 0, in a cache line of its own

CHUNK = 256  # tokens per launch: enough to make decoding a strip of weights cheap, small enough for the caches

LOGIT_ROWS = 32  # tokens whose logits are computed at a time

# Called with (layer, site, inputs f32 [tokens, cols]) for every chunk; the array is overwritten afterwards.
Observer = Callable[[int, str, np.ndarray], None]


@dataclass(frozen=True)
class ChunkPlan:
    """First vectors of prefill's buffers (f32 x 16) and their strides per token, for up to CHUNK tokens."""

    hidden: int
    inputs: tuple[int, ...]  # per site: the input of its matrix
    output: int
    output_stride: int
    logits: int
    tiles: int  # [workers][TILE_VECTORS]
    scores: int  # [workers][context / 16]
    vectors: int

    @classmethod
    def plan(cls, weights: Weights, workers: int) -> "ChunkPlan":
        """Lay the buffers out one after the other."""
        config = weights.config
        place = CHUNK * config.hidden_size // 16
        inputs = []
        for site in SITES:
            inputs.append(place)
            place += CHUNK * weights.places[site].shape.cols // 16
        output_stride = max(matrix.shape.padded_rows for matrix in weights.places.values()) // 16
        output, place = place, place + CHUNK * output_stride
        tiles, place = place, place + workers * TILE_VECTORS
        scores, place = place, place + workers * weights.context // 16
        logits, place = place, place + LOGIT_ROWS * weights.vocabulary_tiles * 4
        return cls(0, tuple(inputs), output, output_stride, logits, tiles, scores, place)


class Prefill:
    """Runs chunks of tokens through `weights`, on the KV cache that the decode step shares."""

    def __init__(
        self, weights: Weights, cache: ti.Ndarray, cache_shape: CacheShape, thresholds: ti.Ndarray, workers: int
    ) -> None:
        self._weights, self._cache, self._thresholds = weights, cache, thresholds
        self._plan = ChunkPlan.plan(weights, workers)
        self._scratch = ti.ndarray(f32x16, (self._plan.vectors,))
        self._view = host_view(self._scratch)
        self._view[:] = 0
        self._integers = ti.ndarray(ti.i32, (TABLE + 32,))
        host_view(self._integers)[TABLE:] = weights.site_table().reshape(-1)
        self._tokens = ti.ndarray(ti.i32, (CHUNK,))
        self._warm = False
        self._embed, self._block, self._logits = make_prefill_kernels(weights, cache_shape, self._plan, workers)

    def warm_up(self, position: int) -> None:
        """Run once, if nothing has run yet, at a position that is free: what it writes to the cache is overwritten by the next token."""
        if not self._warm:
            self.run([0], position)
            self.logits(0, 1)

    def run(
        self, tokens: Sequence[int], start: int, masked: bool = False, observer: Observer | None = None
    ) -> None:
        """Put up to CHUNK tokens, the first at position `start`, through every block; their hidden states stay for `logits`."""
        w, count, self._warm = self._weights, len(tokens), True
        host_view(self._tokens)[:count] = tokens
        self._embed(w.words, w.scales, self._scratch, self._tokens, count)
        for layer in range(w.config.num_hidden_layers):
            host_view(self._integers)[0] = 0
            self._block(
                w.quants, w.tail, w.headers, w.constants, self._cache, self._scratch, self._integers, self._thresholds,
                layer, start, count, int(masked),
            )  # fmt: skip
            if observer is not None:
                ti.sync()
                for site in SITES:
                    observer(layer, site, self._input(site, count))

    def _input(self, site: str, count: int) -> np.ndarray:
        cols = self._weights.places[site].shape.cols
        start = self._plan.inputs[SITES.index(site)]
        return self._view[start : start + count * cols // 16].reshape(count, cols)

    def logits(self, first: int, last: int) -> np.ndarray:
        """Logits f32 [last - first, vocabulary] of tokens first..last-1 of the last chunk."""
        w, stride = self._weights, self._weights.vocabulary_tiles * 4
        rows = []
        for begin in range(first, last, LOGIT_ROWS):
            count = min(LOGIT_ROWS, last - begin)
            self._logits(w.words, w.scales, w.constants, self._scratch, begin, count)
            ti.sync()
            view = self._view[self._plan.logits :][: count * stride].reshape(count, -1)
            rows.append(view[:, : w.config.vocab_size].copy())
        return np.concatenate(rows) if rows else np.zeros((0, w.config.vocab_size), np.float32)


def make_prefill_kernels(weights: Weights, cache_shape: CacheShape, plan: ChunkPlan, workers: int):
    """The kernels (embed tokens, run one block, compute logits) for a model of these shapes."""
    config = weights.config
    hidden, width = config.hidden_size // 16, config.intermediate_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, group, attention = head_dim // 16, heads // kv_heads, heads * head_dim // 16
    eps = config.rms_norm_eps
    attention_norm, ffn_norm = weights.layer_constants["attention_norm"], weights.layer_constants["ffn_norm"]
    constants_stride, final_norm, rope = weights.constants_stride, weights.final_norm, weights.rope
    quants_stride, tail_stride, headers_stride = weights.quants_stride, weights.tail_stride, weights.headers_stride
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    score_stride = cache_shape.context // 16
    inputs, output, stride = plan.inputs, plan.output, plan.output_stride
    head_tile, tiles = weights.head_tile, weights.vocabulary_tiles
    _, embed = make_head(config.hidden_size)
    matmul = make_matmul(workers)
    vocabulary_matmul = make_vocabulary_matmul(config.hidden_size, workers)

    @ti.func
    def multiply(
        quants: ti.template(), tail: ti.template(), headers: ti.template(), a: ti.template(), integers: ti.template(),
        layer, site, source, count, worker,
    ):  # fmt: skip
        """output = W input of a site for every token."""
        at = TABLE + site * 8
        cols = integers[at + COLS]
        matmul(
            quants, layer * quants_stride + integers[at + QUANTS], tail, layer * tail_stride + integers[at + TAIL],
            headers, layer * headers_stride + integers[at + HEADERS], cols, integers[at + FULL_BANDS],
            integers[at + TAIL_PAIRS], a, plan.tiles + worker * TILE_VECTORS, source, cols >> 4, a, output, stride,
            count, worker,
        )  # fmt: skip

    @ti.func
    def biased(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, token, vector):
        """Vector `vector` of a site's output for a token, with the bias."""
        bias = integers[TABLE + site * 8 + BIAS]
        total = a[output + token * stride + vector]
        if bias >= 0:
            total += constants[layer * constants_stride + bias + vector]
        return total

    @ti.func
    def mask(a: ti.template(), first, vectors, threshold):
        """Zero what the decode step would skip."""
        for i in range(first, first + vectors):
            v = a[i]
            a[i] = f32x16(*[ti.select(ti.abs(v[k]) > threshold, v[k], 0.0) for k in ti.static(range(16))])

    @ti.func
    def normalise(a: ti.template(), constants: ti.template(), weight, token, target):
        squares = square_sum(a, token * hidden, (token + 1) * hidden)
        factor = 1.0 / ti.sqrt(squares / (hidden * 16) + eps)
        scaled_copy(a, token * hidden, constants, weight, factor, target + token * hidden, hidden)

    @ti.func
    def normalise_share(
        a: ti.template(), constants: ti.template(), thresholds: ti.template(), layer, site, weight, target, count,
        masked, worker,
    ):  # fmt: skip
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            normalise(a, constants, weight, token, target)
            if masked == 1 and thresholds[layer * 4 + site] > 0.0:
                mask(a, target + token * hidden, hidden, thresholds[layer * 4 + site])

    @ti.func
    def place_heads(
        a: ti.template(), constants: ti.template(), integers: ti.template(), cache: ti.template(), layer, start, count, worker
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
                    write_key(cache, keys, start + token, a, at * 16, head_dim)
                if head >= heads + kv_heads:
                    write_value(cache, values, start + token, a, at, head_dim)

    @ti.func
    def attend_tokens(
        a: ti.template(), cache: ti.template(), thresholds: ti.template(), layer, start, count, masked, worker
    ):
        """Attention of every head for every `workers`-th token: later tokens see more positions, so shares are interleaved."""
        for i in range((count + workers - 1 - worker) // workers):
            token = i * workers + worker
            position = start + token
            for head in range(heads):
                keys = layer * cache_layer + (head // group) * 2 * half_stride
                out = inputs[1] + token * attention + head * head_vectors
                _, total = attend(
                    cache, keys, keys + half_stride, a, output + token * stride + head * head_vectors, 0,
                    (position >> 4) + 1, position, plan.scores + worker * score_stride, out, head_dim,
                )  # fmt: skip
                for d in range(head_vectors):
                    a[out + d] = a[out + d] / total
            if masked == 1 and thresholds[layer * 4 + 1] > 0.0:
                mask(a, inputs[1] + token * attention, attention, thresholds[layer * 4 + 1])

    @ti.func
    def add_residual(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, count, worker):
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            for i in range(hidden):
                a[token * hidden + i] = a[token * hidden + i] + biased(a, constants, integers, layer, site, token, i)

    @ti.func
    def gate(
        a: ti.template(), constants: ti.template(), integers: ti.template(), thresholds: ti.template(), layer, count,
        masked, worker,
    ):  # fmt: skip
        """Input of down: silu(gate) * up."""
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            at = inputs[3] + token * width
            for i in range(width):
                g = biased(a, constants, integers, layer, 2, token, i)
                up = biased(a, constants, integers, layer, 2, token, width + i)
                a[at + i] = g / (1.0 + exp_lanes(0.0 - g)) * up
            if masked == 1 and thresholds[layer * 4 + 3] > 0.0:
                mask(a, at, width, thresholds[layer * 4 + 3])

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
        cache: array_of(f32x16), a: array_of(f32x16), integers: array_of(ti.i32), thresholds: array_of(ti.f32),
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
                    attend_tokens(a, cache, thresholds, layer, start, count, masked, worker)
                elif site == 3:
                    source = inputs[3]
                    gate(a, constants, integers, thresholds, layer, count, masked, worker)
                else:
                    source = ti.select(site == 0, inputs[0], inputs[2])
                    norm = norms + ti.select(site == 0, attention_norm, ffn_norm)
                    normalise_share(a, constants, thresholds, layer, site, norm, source, count, masked, worker)
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
            for token in range(first + share_start(count, worker, workers), first + share_start(count, worker + 1, workers)):
                normalise(a, constants, final_norm, token, inputs[0])
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            vocabulary_matmul(
                words, scales, head_tile, tiles, a, plan.tiles + worker * TILE_VECTORS,
                inputs[0] + first * hidden, hidden, a, plan.logits, tiles * 4, count, worker,
            )  # fmt: skip

    return embed_tokens, run_block, score_tokens
