"""The decode step on a GPU: a token is one submission, without waiting for the device."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.errors import BackendError
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import zeros
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.neuron_arrays import FACTORS, NeuronArrays, NeuronMap
from spqt_ti.model.simt.neuron_kernels import make_predict_neurons, make_run_neurons
from spqt_ti.model.simt.token_kernels import make_token_kernels
from spqt_ti.model.simt.weights import LayerSpan
from spqt_ti.model.sites import SITES


class SimtDecode:
    """Runs tokens one after the other; the interface is `model.engine.Decode`.

    A token is begin_token, run_layer for every layer and end_token. The best token stays on the device, where the next
    step finds it, and so do the numbers of active inputs, until they are asked for.
    """

    def __init__(self, arrays: ModelArrays) -> None:
        self._arrays, self._steps = arrays, 0
        self._results = zeros(ti.i32, MOST_TOKENS + arrays.selectors.thresholds.size)
        self._on_host: np.ndarray | None = None
        self._token: Submission | None = None  # compiled when it is first wanted
        self._neurons: NeuronArrays | None = None
        self._numbers = np.full(arrays.config.num_hidden_layers, -1)  # of each layer's predictor; -1: it has none
        self._parallel = False
        self._kernels: dict[Any, Any] = {}  # that were made so far, compiled or not

    @property
    def active(self) -> np.ndarray:
        """Inputs that were active in the tokens of the last run, i32 [layers, 4]. Waits for the device."""
        return self._read_results()[MOST_TOKENS:].reshape(-1, len(SITES))

    @property
    def neurons(self) -> np.ndarray:
        """Gate and up rows that were read in the tokens of the last run by layers that predict neurons, i32
        [layers, 2]. Waits for the device.
        """
        layers = self._arrays.config.num_hidden_layers
        if self._neurons is None:
            return np.zeros((layers, 2), np.int32)
        rows = self._neurons.arrays["rows_read"].to_numpy().reshape(layers, 2, -1)
        return rows.sum(axis=2, dtype=np.int32)

    def use_neurons(self, neurons: NeuronArrays | None, numbers: np.ndarray, parallel: bool = False) -> None:
        """Run the feed-forward networks of layers whose number [layers] is not negative by these predictors from now
        on; None: all dense. `parallel`: the executor.
        """
        self._neurons, self._numbers, self._parallel, self._token = neurons, numbers, parallel, None

    @property
    def best_tokens(self) -> list[int]:
        """The token of the highest logit after each token of the last run. Waits for the device."""
        return self._read_results()[: self._steps].tolist()

    def warm_up(self, position: int) -> None:
        """Compile the kernels by running a token at a free position, if none has run yet."""
        if self._token is None:
            self.run(0, position)
            ti.sync()

    def run(self, token: int, position: int, steps: int = 1) -> None:
        """Submit `token` at `position`, and `steps - 1` more, without waiting for the device."""
        self._steps, self._on_host = steps, None
        self._arrays.upload_selectors()
        if self._token is None:
            self._token = self._make_token()
        if self._neurons is not None:
            self._neurons.arrays["rows_read"].fill(0)
        for step in range(steps):
            self._token.submit(token=-1 if step else token, position=position + step, step=step)

    def _make_token(self) -> Submission:
        m = self._arrays
        begin, _, end = self._span_kernels(m.weight_map.spans[0], True)
        vocabulary = ("words", "scales", "a", "integers")
        launches = [
            Launch(begin, vocabulary, ("token", "position")),
            *itertools.chain.from_iterable(map(self._layer, range(m.config.num_hidden_layers))),
            Launch(end, (*m.weight_map.head_arrays, "a", "integers", "logits", "results"), ("step",)),
        ]
        names = ("words", "scales", "quants", "headers", "a", "cache", "integers", "logits")
        arrays = {name: getattr(m, name) for name in names} | {"results": self._results}
        return Submission(launches, arrays | (self._neurons.arrays if self._neurons else {}))

    def _layer(self, layer: int) -> list[Launch]:
        """A layer's launches: one, or three where it predicts neurons."""
        weights, number = ("quants", "headers", "a", "cache", "integers"), int(self._numbers[layer])
        _, run_layer, _ = self._span_kernels(self._arrays.weight_map.span(layer), number < 0)
        launches = [Launch(run_layer, weights, (layer,))]
        if self._neurons is not None and number >= 0:
            predict, run_neurons = self._neuron_kernels(self._neurons.map)
            arrays = ("quants", "headers", "a", "integers", "guesses", "rows_read")
            launches += [Launch(predict, ("a", *FACTORS), (number,)), Launch(run_neurons, arrays, (layer,))]
        return launches

    def _span_kernels(self, span: LayerSpan, feed_forward: bool) -> tuple[Any, Any, Any]:
        m, key = self._arrays, (span.first, feed_forward)
        if key not in self._kernels:
            maps = m.weight_map, m.constants, m.cache_shape, m.selectors.map, m.floats, m.ints
            self._kernels[key] = make_token_kernels(*maps, span=span, feed_forward=feed_forward)
        kernels: tuple[Any, Any, Any] = self._kernels[key]
        return kernels

    def _neuron_kernels(self, neurons: NeuronMap) -> tuple[Any, Any]:
        m, key = self._arrays, (neurons, self._parallel)
        if key not in self._kernels:
            maps = m.weight_map, m.constants, m.selectors.map, m.floats, m.ints
            run_neurons = make_run_neurons(*maps, neurons, self._parallel)
            self._kernels[key] = make_predict_neurons(m.floats, neurons), run_neurons
        kernels: tuple[Any, Any] = self._kernels[key]
        return kernels

    def profile(self, token: int, position: int, steps: int = 1) -> dict[str, float]:
        """Raises BackendError: kernels on a GPU cannot read a clock."""
        raise BackendError("kernels cannot read a clock on this backend; profile with the GPU maker's tool, or on cpu")

    def logits(self) -> np.ndarray:
        """Logits f32 [vocabulary] of the last token. Waits for the device."""
        return self._arrays.read_logits()

    def _read_results(self) -> np.ndarray:
        if self._on_host is None:
            self._on_host = self._results.to_numpy()
        return self._on_host
