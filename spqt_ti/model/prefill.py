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
from spqt_ti.model.weights import Weights

CHUNK = 256  # tokens per launch: enough to make decoding a strip of weights cheap, small enough for the caches

LOGIT_ROWS = 32  # tokens whose logits are computed at a time

# Called with (layer, site, inputs f32 [tokens, cols]) for every chunk; the array is overwritten afterwards.
Observer = Callable[[int, str, np.ndarray], None]


@dataclass(frozen=True)
class ChunkPlan:
    """First vectors of prefill's buffers (f32 x 16) and their strides per token, for up to CHUNK tokens."""

    hidden: int
    inputs: dict[str, int]  # site -> input of its matrix
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
        inputs = {}
        for site, matrix in weights.places.items():
            inputs[site] = place
            place += CHUNK * matrix.shape.cols // 16
        output_stride = max(matrix.shape.padded_rows for matrix in weights.places.values()) // 16
        output, place = place, place + CHUNK * output_stride
        tiles, place = place, place + workers * TILE_VECTORS
        scores, place = place, place + workers * weights.context // 16
        logits, place = place, place + LOGIT_ROWS * weights.vocabulary_tiles * 4
        return cls(0, inputs, output, output_stride, logits, tiles, scores, place)


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
        self._barrier = ti.ndarray(ti.i32, (16,))
        self._tokens = ti.ndarray(ti.i32, (CHUNK,))
        self._embed, self._block, self._logits = make_prefill_kernels(weights, cache_shape, self._plan, workers)

    def run(
        self, tokens: Sequence[int], start: int, masked: bool = False, observer: Observer | None = None
    ) -> None:
        """Put up to CHUNK tokens, the first at position `start`, through every block; their hidden states stay for `logits`."""
        w, count = self._weights, len(tokens)
        host_view(self._tokens)[:count] = tokens
        self._embed(w.words, w.scales, self._scratch, self._tokens, count)
        for layer in range(w.config.num_hidden_layers):
            host_view(self._barrier)[0] = 0
            self._block(
                w.quants, w.tail, w.headers, w.constants, self._cache, self._scratch, self._barrier, self._thresholds,
                layer, start, count, int(masked),
            )  # fmt: skip
            if observer is not None:
                ti.sync()
                for site in SITES:
                    observer(layer, site, self._input(site, count))

    def _input(self, site: str, count: int) -> np.ndarray:
        cols = self._weights.places[site].shape.cols
        start = self._plan.inputs[site]
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
    config, places = weights.config, weights.places
    hidden, width = config.hidden_size // 16, config.intermediate_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, group, attention = head_dim // 16, heads // kv_heads, heads * head_dim // 16
    eps = config.rms_norm_eps
    constants_at, constants_stride = weights.layer_constants, weights.constants_stride
    attention_norm, ffn_norm = constants_at["attention_norm"], constants_at["ffn_norm"]
    final_norm, rope = weights.final_norm, weights.rope
    quants_stride, tail_stride, headers_stride = weights.quants_stride, weights.tail_stride, weights.headers_stride
    has_bias = [f"{site}_bias" in constants_at for site in SITES]
    bias_at = [constants_at.get(f"{site}_bias", 0) for site in SITES]
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    score_stride = cache_shape.context // 16
    inputs, output, stride = [plan.inputs[site] for site in SITES], plan.output, plan.output_stride
    head_tile, tiles = weights.head_tile, weights.vocabulary_tiles
    _, embed = make_head(config.hidden_size)
    vocabulary_matmul = make_vocabulary_matmul(config.hidden_size, workers)

    def make_multiply(site: int):
        """The ti.func that computes output = W input of a site for every token."""
        place = places[SITES[site]]
        quants_at, tail_at, headers_at = place.quants, place.tail, place.headers
        source, source_stride = inputs[site], place.shape.cols // 16
        matmul = make_matmul(place.shape, workers)

        @ti.func
        def multiply(quants: ti.template(), tail: ti.template(), headers: ti.template(), a: ti.template(), layer, count, worker):
            matmul(
                quants, layer * quants_stride + quants_at, tail, layer * tail_stride + tail_at,
                headers, layer * headers_stride + headers_at, a, plan.tiles + worker * TILE_VECTORS,
                source, source_stride, a, output, stride, count, worker,
            )  # fmt: skip

        return multiply

    multiply_qkv, multiply_o, multiply_gate_up, multiply_down = (make_multiply(site) for site in range(4))

    @ti.func
    def biased(a: ti.template(), constants: ti.template(), layer, site: ti.template(), token, vector):
        """Vector `vector` of a site's output for a token, with the bias."""
        total = a[output + token * stride + vector]
        if ti.static(has_bias[site]):
            total += constants[layer * constants_stride + bias_at[site] + vector]
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
        a: ti.template(), constants: ti.template(), thresholds: ti.template(), layer, site: ti.template(), weight, count,
        masked, worker,
    ):  # fmt: skip
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            normalise(a, constants, weight, token, ti.static(inputs[site]))
            if masked == 1 and thresholds[layer * 4 + site] > 0.0:
                mask(a, ti.static(inputs[site]) + token * hidden, hidden, thresholds[layer * 4 + site])

    @ti.func
    def place_heads(a: ti.template(), constants: ti.template(), cache: ti.template(), layer, start, count, worker):
        """Bias and rotate the worker's heads in place for every token; put k and v into the cache."""
        for head in range(
            share_start(heads + 2 * kv_heads, worker, workers), share_start(heads + 2 * kv_heads, worker + 1, workers)
        ):
            keys = layer * cache_layer + (head - heads) * 2 * half_stride
            values = keys - kv_heads * 2 * half_stride + half_stride
            for token in range(count):
                at = output + token * stride + head * head_vectors
                if ti.static(has_bias[0]):
                    for d in range(head_vectors):
                        a[at + d] = biased(a, constants, layer, 0, token, head * head_vectors + d)
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
                out = ti.static(inputs[1]) + token * attention + head * head_vectors
                _, total = attend(
                    cache, keys, keys + half_stride, a, output + token * stride + head * head_vectors, 0,
                    (position >> 4) + 1, position, plan.scores + worker * score_stride, out, head_dim,
                )  # fmt: skip
                for d in range(head_vectors):
                    a[out + d] = a[out + d] / total
            if masked == 1 and thresholds[layer * 4 + 1] > 0.0:
                mask(a, ti.static(inputs[1]) + token * attention, attention, thresholds[layer * 4 + 1])

    @ti.func
    def add_residual(a: ti.template(), constants: ti.template(), layer, site: ti.template(), count, worker):
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            for i in range(hidden):
                a[token * hidden + i] = a[token * hidden + i] + biased(a, constants, layer, site, token, i)

    @ti.func
    def gate(a: ti.template(), constants: ti.template(), thresholds: ti.template(), layer, count, masked, worker):
        """Input of down: silu(gate) * up."""
        for token in range(share_start(count, worker, workers), share_start(count, worker + 1, workers)):
            at = ti.static(inputs[3]) + token * width
            for i in range(width):
                g = biased(a, constants, layer, 2, token, i)
                up = biased(a, constants, layer, 2, token, width + i)
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
        cache: array_of(f32x16), a: array_of(f32x16), barrier: array_of(ti.i32), thresholds: array_of(ti.f32),
        layer: ti.i32, start: ti.i32, count: ti.i32, masked: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            norms = layer * constants_stride
            normalise_share(a, constants, thresholds, layer, 0, norms + attention_norm, count, masked, worker)
            wait_for_all(barrier, 0, workers)
            multiply_qkv(quants, tail, headers, a, layer, count, worker)
            wait_for_all(barrier, 0, 2 * workers)
            place_heads(a, constants, cache, layer, start, count, worker)
            wait_for_all(barrier, 0, 3 * workers)
            attend_tokens(a, cache, thresholds, layer, start, count, masked, worker)
            wait_for_all(barrier, 0, 4 * workers)
            multiply_o(quants, tail, headers, a, layer, count, worker)
            wait_for_all(barrier, 0, 5 * workers)
            add_residual(a, constants, layer, 1, count, worker)
            normalise_share(a, constants, thresholds, layer, 2, norms + ffn_norm, count, masked, worker)
            wait_for_all(barrier, 0, 6 * workers)
            multiply_gate_up(quants, tail, headers, a, layer, count, worker)
            wait_for_all(barrier, 0, 7 * workers)
            gate(a, constants, thresholds, layer, count, masked, worker)
            wait_for_all(barrier, 0, 8 * workers)
            multiply_down(quants, tail, headers, a, layer, count, worker)
            wait_for_all(barrier, 0, 9 * workers)
            add_residual(a, constants, layer, 3, count, worker)

    @ti.kernel
    def score_tokens(
        words: array_of(u32x16), scales: array_of(f16x16), constants: array_of(f32x16), a: array_of(f32x16),
        first: ti.i32, count: ti.i32,
    ):  # fmt: skip
        # The normalised states go where the blocks' first inputs were.
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            for token in range(first + share_start(count, worker, workers), first + share_start(count, worker + 1, workers)):
                normalise(a, constants, final_norm, token, ti.static(inputs[0]))
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            vocabulary_matmul(
                words, scales, head_tile, tiles, a, plan.tiles + worker * TILE_VECTORS,
                ti.static(inputs[0]) + first * hidden, hidden, a, plan.logits, tiles * 4, count, worker,
            )  # fmt: skip

    return embed_tokens, run_block, score_tokens
