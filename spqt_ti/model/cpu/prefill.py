"""Prefill: many tokens at once, densely, one persistent kernel launch per layer.

A prompt is cut into chunks. For calibration and tests an observer sees every collected input, and `masked` zeroes the
inputs that the decode step would skip: every token is then treated as if it were decoded.
"""

from __future__ import annotations

import functools

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, ti
from spqt_ti.kernels.cpu.attention import CacheShape
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.model.cpu.maps import COUNT, LAYER, LOGIT_ROWS, MASKED, SITE_TABLE, START, ChunkMap
from spqt_ti.model.cpu.neuron_map import NeuronMap
from spqt_ti.model.cpu.prefill_kernels import make_prefill_kernels
from spqt_ti.model.cpu.weights import Weights
from spqt_ti.model.engine import CHUNK, Observer, Tokens
from spqt_ti.model.sites import SITES, Site


class Prefill:
    """Runs chunks of tokens through `weights`, on the KV cache that the decode step shares."""

    def __init__(
        self, weights: Weights, cache: ti.Ndarray, cache_shape: CacheShape, workers: int, exact: bool = False
    ) -> None:  # fmt: skip
        self._weights, self._cache = weights, cache
        self._chunk_map = ChunkMap.of(weights.map, workers, exact)
        self._scratch = ndarray(f32x16, (self._chunk_map.vectors,))
        self._view = host_view(self._scratch)
        self._view[:] = 0
        table = weights.map.site_table().reshape(-1)
        layers = weights.map.config.num_hidden_layers
        self._integers = ndarray(ti.i32, (SITE_TABLE + table.size + layers,))
        host_view(self._integers)[SITE_TABLE:][: table.size] = table
        self._predictors = host_view(self._integers)[SITE_TABLE + table.size :]
        self._tokens = ndarray(ti.i32, (CHUNK,))
        self._warm = False
        self._make_kernels = functools.partial(
            make_prefill_kernels, weights.map, cache_shape, self._chunk_map, workers, exact
        )
        self._embed, self._run_layer, self._logits = self._make_kernels()

    def use_neurons(self, neurons: NeuronMap | None, numbers: np.ndarray) -> None:
        """Zero what predictors say is off, in masked runs from now on: `numbers` as of `DecodeStep.use_neurons`."""
        self._predictors[:] = numbers
        _, self._run_layer, _ = self._make_kernels(neurons)

    def warm_up(self, position: int) -> None:
        """Run every kernel once, the first time this is called, at a position that is free.

        What it writes to the cache there is overwritten by the next token.
        """
        if not self._warm:
            self.run([0], position)
            self.logits(0, 1)
            self._warm = True

    def run(self, tokens: Tokens, start: int, masked: bool = False, observer: Observer | None = None) -> None:
        """Put up to CHUNK tokens, the first at position `start`, through every layer; their hidden states stay for
        `logits`.
        """
        self.embed(tokens)
        for layer in range(self._weights.map.config.num_hidden_layers):
            self.run_layer(layer, start, len(tokens), masked)
            if observer is not None:
                ti.sync()
                for site in SITES:
                    observer(layer, site, self._input(layer, site, len(tokens)))

    def embed(self, tokens: Tokens) -> None:
        """Make the embeddings of up to CHUNK tokens the hidden states."""
        w, count = self._weights, len(tokens)
        host_view(self._tokens)[:count] = tokens
        self._embed(w.words, w.scales, self._scratch, self._tokens, count)

    def run_layer(self, layer: int, start: int, count: int, masked: bool) -> None:
        """Put the hidden states of `count` tokens, the first at position `start`, through one layer."""
        w = self._weights
        integers = host_view(self._integers)
        integers[0] = 0
        integers[[LAYER, START, COUNT, MASKED]] = layer, start, count, masked
        self._run_layer(
            w.quants,
            w.tail,
            w.headers,
            w.words,
            w.scales,
            w.constants,
            self._cache,
            self._scratch,
            address(self._scratch),
            self._integers,
        )

    def read_states(self, count: int) -> np.ndarray:
        """The hidden states of `count` tokens, f32 [count, hidden]."""
        ti.sync()
        return self._states(count).copy()

    def write_states(self, states: np.ndarray) -> None:
        """Replace the hidden states of the first tokens by f32 [count, hidden]."""
        self._states(len(states))[:] = states

    def _states(self, count: int) -> np.ndarray:
        hidden = self._weights.map.config.hidden_size
        return self._view[: count * hidden // 16].reshape(count, hidden)

    def _input(self, layer: int, site: str, count: int) -> np.ndarray:
        cols = self._weights.map.matrices.sites[layer][Site[site.upper()]].shape.cols
        start = self._chunk_map.inputs[SITES.index(site)]
        return self._view[start : start + count * cols // 16].reshape(count, cols)

    def logits(self, first: int, last: int) -> np.ndarray:
        """Logits f32 [last - first, vocabulary] of tokens first..last-1 of the last chunk."""
        w, stride, at = self._weights, self._weights.map.logit_vectors, address(self._scratch)
        rows = []
        for begin in range(first, last, LOGIT_ROWS):
            count = min(LOGIT_ROWS, last - begin)
            self._logits(w.words, w.scales, w.quants, w.headers, w.constants, self._scratch, at, begin, count)
            ti.sync()
            view = self._view[self._chunk_map.logits :][: count * stride].reshape(count, -1)
            rows.append(view[:, : w.map.config.vocab_size].copy())
        return np.concatenate(rows) if rows else np.zeros((0, w.map.config.vocab_size), np.float32)
