"""The decode step: one token through the whole model as one persistent kernel.

Every worker thread runs the whole token. Where a phase needs what other workers wrote, all wait at a spin barrier; what is cheap (a norm, an index list)
every worker computes for itself instead of waiting for another. Nine barriers per block, no allocation, no Python.
"""

from dataclasses import dataclass

import numpy as np

from spqt_ti.backend import address, host_view, ti
from spqt_ti.kernels.attention import LOWEST, CacheShape, attend, write_key, write_value
from spqt_ti.kernels.collect import collect
from spqt_ti.kernels.gemv import make_gemv
from spqt_ti.kernels.head import f16x16, make_head
from spqt_ti.kernels.norm import scaled_copy, square_sum
from spqt_ti.kernels.rope import rotate
from spqt_ti.kernels.vectors import array_of, exp_lanes, f32x16, u32x4, u32x8, u32x16
from spqt_ti.kernels.workers import share_start, wait_for_all
from spqt_ti.model.sites import SITES
from spqt_ti.model.weights import SITE_FIELDS, Weights

COLS, FULL_BANDS, TAIL_PAIRS, BANDS, QUANTS, TAIL, HEADERS, BIAS = range(len(SITE_FIELDS))


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
    heads: int  # [workers][attention width / 16]
    softmax: int  # [workers][heads], lanes 0 and 1: maximum and sum
    scores: int  # [workers][context / 16]
    best: int  # [workers], lanes 0 and 1: highest logit, its token
    logits: int  # [vocabulary tiles * 4]
    vectors: int

    @classmethod
    def plan(cls, weights: Weights, workers: int) -> "Scratch":
        """Lay the buffers out one after the other."""
        config, shapes = weights.config, {site: place.shape for site, place in weights.places.items()}
        input_stride = max(shape.cols for shape in shapes.values()) // 16
        sizes = {
            "hidden": config.hidden_size // 16,
            "query": shapes["qkv"].rows // 16,
            "activation": config.intermediate_size // 16,
            "squares": workers,
            "inputs": workers * input_stride,
            "partial": workers * max(shape.padded_rows for shape in shapes.values()) // 16,
            "heads": workers * shapes["o"].cols // 16,
            "softmax": workers * config.num_attention_heads,
            "scores": workers * weights.context // 16,
            "best": workers,
            "logits": weights.vocabulary_tiles * 4,
        }
        starts, place = {}, 0
        for name, size in sizes.items():
            starts[name] = place
            place += size
        return cls(**starts, input_stride=input_stride, vectors=place)


class DecodeStep:
    """Runs tokens one at a time through `weights`, on a KV cache that prefill shares.

    `thresholds` (f32 [layers, 4], a view of device memory) says per layer and site below which magnitude an input is skipped; 0 runs
    the site dense.
    """

    def __init__(self, weights: Weights, cache: ti.Ndarray, cache_shape: CacheShape, workers: int) -> None:
        config = weights.config
        self._weights, self._cache, self._workers = weights, cache, workers
        self._scratch_plan = scratch = Scratch.plan(weights, workers)
        self._scratch = ti.ndarray(f32x16, (scratch.vectors,))
        self._view = host_view(self._scratch)
        self._view[:] = 0
        sites = config.num_hidden_layers * len(SITES)
        self.threshold_array = ti.ndarray(ti.f32, (sites,))
        self.thresholds = host_view(self.threshold_array).reshape(-1, len(SITES))
        self.thresholds[:] = 0
        self._integers = IntegerPlan.plan(weights, workers)
        self._ints = ti.ndarray(ti.i32, (self._integers.size,))
        self._ints_view = host_view(self._ints)
        self._ints_view[:] = 0
        self._ints_view[self._integers.sites :][:32] = weights.site_table().reshape(-1)
        most = scratch.input_stride * 16
        self._ints_view[self._integers.everything :][:most] = np.arange(most)
        self.active = self._ints_view[self._integers.counts :][:sites].reshape(-1, len(SITES))
        self._warm = False
        self._kernel = make_decode_kernel(weights, cache_shape, scratch, self._integers, workers)

    def warm_up(self, position: int) -> None:
        """Run once, if nothing has run yet, at a position that is free: what it writes to the cache is overwritten by the next token."""
        if not self._warm:
            self.run(0, position)

    def run(self, token: int, position: int) -> None:
        """Decode `token` at `position`; `logits`, `best_token` and `active` then describe it."""
        w, self._warm = self._weights, True
        self._ints_view[0] = 0
        self._kernel(
            w.quants, w.tail, w.headers, w.words, w.scales, w.constants, self._cache, self._scratch, self._ints,
            self.threshold_array, address(w.quants), token, position,
        )  # fmt: skip
        ti.sync()

    def logits(self) -> np.ndarray:
        """Logits of the last token, f32 [vocabulary]: a view that the next `run` overwrites."""
        start = self._scratch_plan.logits
        return self._view[start : start + self._weights.vocabulary_tiles * 4].reshape(-1)[: self._weights.config.vocab_size]

    def best_token(self) -> int:
        """Token of the highest logit of the last run, the lowest id among equals."""
        best = self._view[self._scratch_plan.best :][: self._workers, :2]
        return int(best[np.argmax(best[:, 0]), 1])


@dataclass(frozen=True)
class IntegerPlan:
    """Places in the decode step's i32 array; the barrier's counter is element 0, alone in its cache line."""

    sites: int  # [4][8], Weights.site_table
    counts: int  # [layers][4], active inputs of the last token
    everything: int  # 0, 1, 2, ...: the active list of a dense site
    lists: int  # [workers][list_stride], active lists
    list_stride: int
    size: int

    @classmethod
    def plan(cls, weights: Weights, workers: int) -> "IntegerPlan":
        """Lay the parts out, each on cache lines of its own."""
        most = max(place.shape.cols for place in weights.places.values())
        sites = 16
        counts = sites + 32
        everything = counts + -(-weights.config.num_hidden_layers * len(SITES) // 16) * 16
        lists = everything + -(-most // 16) * 16
        list_stride = (most // 16 + 1) * 16
        return cls(sites, counts, everything, lists, list_stride, lists + workers * list_stride)


def make_decode_kernel(weights: Weights, cache_shape: CacheShape, scratch: Scratch, ints: IntegerPlan, workers: int):
    """The decode step of a model of these shapes, for a fixed number of workers."""
    config = weights.config
    layers, hidden, width = config.num_hidden_layers, config.hidden_size // 16, config.intermediate_size // 16
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    head_vectors, group = head_dim // 16, heads // kv_heads
    eps = config.rms_norm_eps
    attention_norm, ffn_norm = weights.layer_constants["attention_norm"], weights.layer_constants["ffn_norm"]
    constants_stride, final_norm, rope = weights.constants_stride, weights.final_norm, weights.rope
    quants_stride, tail_stride, headers_stride = weights.quants_stride, weights.tail_stride, weights.headers_stride
    tiles, head_tile, vocabulary = weights.vocabulary_tiles, weights.head_tile, config.vocab_size
    half_stride, cache_layer = cache_shape.half_stride, cache_shape.layer_stride
    logits_tile, embed = make_head(config.hidden_size)
    gemv = make_gemv(workers)

    @ti.func
    def summed(a: ti.template(), constants: ti.template(), integers: ti.template(), layer, site, vector):
        """Vector `vector` of a site's output: the workers' partial sums in worker order, plus the bias."""
        stride = integers[ints.sites + site * 8 + BANDS] * 16
        bias = integers[ints.sites + site * 8 + BIAS]
        total = a[scratch.partial + vector]
        for w in range(1, workers):
            total += a[scratch.partial + w * stride + vector]
        if bias >= 0:
            total += constants[layer * constants_stride + bias + vector]
        return total

    @ti.func
    def multiply(
        quants: ti.template(), tail: ti.template(), headers: ti.template(), quants_address, a: ti.template(),
        integers: ti.template(), thresholds: ti.template(), layer, site, x, worker,
    ):  # fmt: skip
        """Collect the active inputs of a site, x beginning at vector a[x], and multiply its matrix by them."""
        at = ints.sites + site * 8
        cols = integers[at + COLS]
        threshold = thresholds[layer * 4 + site]
        active = ints.everything
        count = cols
        if threshold > 0.0:
            active = ints.lists + worker * ints.list_stride
            count = collect(a, x, cols, threshold, integers, active)
        if worker == 0:
            integers[ints.counts + layer * 4 + site] = count
        gemv(
            quants, layer * quants_stride + integers[at + QUANTS], tail, layer * tail_stride + integers[at + TAIL],
            headers, layer * headers_stride + integers[at + HEADERS], quants_address, cols, integers[at + FULL_BANDS],
            integers[at + TAIL_PAIRS], a, x, integers, active, count, a, scratch.partial, worker,
        )  # fmt: skip

    @ti.func
    def normalised(a: ti.template(), constants: ti.template(), weight, x):
        """The worker's own copy, at a[x], of RMSNorm(hidden)."""
        squares = 0.0
        # A loop at run time, not an unrolled one: Taichi would reuse what an earlier phase loaded from a constant address, although
        # another worker has written there since.
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
        a: ti.template(), constants: ti.template(), integers: ti.template(), cache: ti.template(), layer, position, worker
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
                write_key(cache, keys, position, a, start * 16, head_dim)
            if head >= heads + kv_heads:
                write_value(cache, keys - kv_heads * 2 * half_stride + half_stride, position, a, start, head_dim)

    @ti.func
    def attend_share(a: ti.template(), cache: ti.template(), layer, position, worker):
        """Every head over the worker's share of the positions."""
        blocks = (position >> 4) + 1
        first = share_start(blocks, worker, workers)
        last = share_start(blocks, worker + 1, workers)
        for head in range(heads):
            keys = layer * cache_layer + (head // group) * 2 * half_stride
            highest, total = attend(
                cache, keys, keys + half_stride, a, scratch.query + head * head_vectors, first, last, position,
                scratch.scores + worker * (cache_shape.context // 16),
                scratch.heads + (worker * heads + head) * head_vectors, head_dim,
            )  # fmt: skip
            a[scratch.softmax + worker * heads + head][0] = highest
            a[scratch.softmax + worker * heads + head][1] = total

    @ti.func
    def join_heads(a: ti.template(), x):
        """The worker's own copy, at a[x], of the attention output: the workers' shares of positions, weighed together."""
        for head in range(heads):
            highest = LOWEST
            for w in range(workers):
                highest = ti.max(highest, a[scratch.softmax + w * heads + head][0])
            total = 0.0
            for w in range(workers):
                total += a[scratch.softmax + w * heads + head][1] * ti.exp(a[scratch.softmax + w * heads + head][0] - highest)
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

    @ti.kernel
    def decode_token(
        quants: array_of(u32x16), tail: array_of(u32x8), headers: array_of(u32x4), words: array_of(u32x16),
        scales: array_of(f16x16), constants: array_of(f32x16), cache: array_of(f32x16), a: array_of(f32x16),
        integers: array_of(ti.i32), thresholds: array_of(ti.f32), quants_address: ti.i64, token: ti.i32, position: ti.i32,
    ):  # fmt: skip
        ti.loop_config(block_dim=1, parallelize=workers)
        for worker in range(workers):
            arrived = 0
            x = scratch.inputs + worker * scratch.input_stride
            first = share_start(hidden, worker, workers)
            last = share_start(hidden, worker + 1, workers)
            for i in range(first, last):
                a[scratch.hidden + i] = embed(words, scales, token, i)
            a[scratch.squares + worker][0] = square_sum(a, scratch.hidden + first, scratch.hidden + last)
            arrived += workers
            wait_for_all(integers, 0, arrived)
            for layer in range(layers):
                for site in range(4):
                    source = x
                    if site == 1:
                        join_heads(a, x)
                    elif site == 3:
                        source = scratch.activation
                    else:
                        norm = ti.select(site == 0, attention_norm, ffn_norm)
                        normalised(a, constants, layer * constants_stride + norm, x)
                    multiply(quants, tail, headers, quants_address, a, integers, thresholds, layer, site, source, worker)
                    arrived += workers
                    wait_for_all(integers, 0, arrived)
                    if site == 0:
                        place_heads(a, constants, integers, cache, layer, position, worker)
                        arrived += workers
                        wait_for_all(integers, 0, arrived)
                        attend_share(a, cache, layer, position, worker)
                    elif site == 2:
                        gate(a, constants, integers, layer, worker)
                    else:
                        add_residual(a, constants, integers, layer, site, worker)
                    arrived += workers
                    wait_for_all(integers, 0, arrived)
            normalised(a, constants, final_norm, x)
            score_vocabulary(words, scales, a, x, worker)

    return decode_token
