"""Prefill on a GPU: chunks of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import zeros
from spqt_ti.model.engine import CHUNK, Observer, Tokens
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.chunk_kernels import make_chunk_kernels
from spqt_ti.model.simt.neuron_arrays import FACTORS, NeuronArrays, NeuronMap
from spqt_ti.model.simt.neuron_kernels import make_mask_neurons
from spqt_ti.model.sites import SITES


class SimtPrefill:
    """Runs chunks of tokens; the interface is `model.engine.Prefill`."""

    def __init__(self, arrays: ModelArrays) -> None:
        self._arrays = arrays
        self._tokens = zeros(ti.i32, CHUNK)
        a = arrays
        maps = a.weight_map, a.constants, a.cache_shape, a.selectors.map, a.floats, a.ints
        kernels = {span.first: make_chunk_kernels(*maps, span=span) for span in a.weight_map.spans}
        self._begin, _, self._end = kernels[0]
        self._launches = {first: launches for first, (_, launches, _) in kernels.items()}
        # By a span's first layer, and whether neurons are predicted; compiled when they are first wanted.
        self._layers: dict[tuple[int, bool], Submission] = {}
        self._neurons: NeuronArrays | None = None
        self._numbers = np.full(arrays.config.num_hidden_layers, -1)  # of each layer's predictor; -1: it has none
        self._mask_kernels: dict[NeuronMap, Any] = {}
        self._warm = False

    def warm_up(self, position: int) -> None:
        """Compile the kernels by running a token at a free position, the first time this is called."""
        if not self._warm:
            self.run([0], position)
            self.logits(0, 1)
            self._warm = True

    def run(self, tokens: Tokens, start: int, masked: bool = False, observer: Observer | None = None) -> None:
        """Put up to CHUNK tokens, the first at position `start`, through every layer."""
        m, count = self._arrays, len(tokens)
        self.embed(tokens)
        for layer in range(m.config.num_hidden_layers):
            self.run_layer(layer, start, count, masked)
            if observer is not None:
                for number, (site, first) in enumerate(zip(SITES, m.floats.chunk_inputs, strict=True)):
                    cols = m.weight_map.span(layer).matrices[site].shape.cols
                    inputs = m.read(first, count * cols).reshape(count, cols)
                    # The products mask what they read; the array keeps every input.
                    observer(layer, site, m.selectors.masked(layer, number, inputs) if masked else inputs)

    def embed(self, tokens: Tokens) -> None:
        """Make the embeddings of up to CHUNK tokens the hidden states."""
        m = self._arrays
        self._tokens.from_numpy(np.pad(np.array(tokens, np.int32), (0, CHUNK - len(tokens))))
        self._begin(m.words, m.scales, m.a, self._tokens, len(tokens))

    def run_layer(self, layer: int, start: int, count: int, masked: bool) -> None:
        """Put the hidden states of `count` tokens, the first at position `start`, through one layer."""
        m, first = self._arrays, self._arrays.weight_map.span(layer).first
        m.upload_selectors()
        key = first, masked and bool(self._numbers[layer] >= 0)
        if key not in self._layers:
            self._layers[key] = self._make_layer(*key)
        scalars = {"index": int(self._numbers[layer])} if key[1] else {}
        self._layers[key].submit(layer=layer, start=start, count=count, masked=int(masked), **scalars)

    def use_neurons(self, neurons: NeuronArrays | None, numbers: np.ndarray) -> None:
        """In masked runs zero what neurons that are off put into down, in layers whose number [layers] is not negative,
        from now on; None: in no layer.
        """
        self._neurons, self._numbers = neurons, numbers
        self._layers = {key: layer for key, layer in self._layers.items() if not key[1]}

    def _make_layer(self, first: int, predicts: bool) -> Submission:
        m, launches = self._arrays, list(self._launches[first])
        arrays = {"quants": m.quants, "headers": m.headers, "a": m.a, "cache": m.cache}
        if not predicts or self._neurons is None:
            return Submission(launches, arrays)
        neurons = self._neurons
        if neurons.map not in self._mask_kernels:
            self._mask_kernels[neurons.map] = make_mask_neurons(m.floats, neurons.map)
        factors = {name: neurons.arrays[name] for name in FACTORS}
        *before, gate_up, down = launches
        gate_up = replace(gate_up, scalars=("layer", "count", 0))  # thresholds of gate and up count for nothing
        mask = Launch(self._mask_kernels[neurons.map], ("a", *factors), ("index", "count"))
        return Submission([*before, gate_up, mask, down], arrays | factors)

    def read_states(self, count: int) -> np.ndarray:
        """The hidden states of `count` tokens, f32 [count, hidden]. Waits for the device."""
        hidden = self._arrays.config.hidden_size
        return self._arrays.read(self._arrays.floats.chunk_hidden, count * hidden).reshape(count, hidden)

    def write_states(self, states: np.ndarray) -> None:
        """Replace the hidden states of the first tokens by f32 [count, hidden]."""
        self._arrays.write(self._arrays.floats.chunk_hidden, states.reshape(-1))

    def logits(self, first: int, last: int) -> np.ndarray:
        """Logits f32 [last - first, vocabulary] of tokens first..last-1 of the last chunk."""
        m, rows = self._arrays, []
        head = [getattr(m, name) for name in m.weight_map.head_arrays]
        for token in range(first, last):
            self._end(*head, m.a, m.integers, m.logits, token)
            rows.append(m.read_logits())
        return np.stack(rows) if rows else np.zeros((0, m.config.vocab_size), np.float32)
