"""The decode step on a GPU: a token is one submission, without waiting for the device."""

from __future__ import annotations

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.errors import BackendError
from spqt_ti.kernels.simt.submission import Launch, Submission
from spqt_ti.kernels.simt.transfer import zeros
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.token_kernels import make_token_kernels
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

    @property
    def active(self) -> np.ndarray:
        """Inputs that were active in the tokens of the last run, i32 [layers, 4]. Waits for the device."""
        return self._read_results()[MOST_TOKENS:].reshape(-1, len(SITES))

    @property
    def neurons(self) -> np.ndarray:
        """Gate and up rows that were read by layers that predict neurons: none, i32 [layers, 2]."""
        return np.zeros((self._arrays.config.num_hidden_layers, 2), np.int32)

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
        for step in range(steps):
            self._token.submit(token=-1 if step else token, position=position + step, step=step)

    def _make_token(self) -> Submission:
        m = self._arrays
        maps = m.weight_map, m.constants, m.cache_shape, m.selectors.map, m.floats, m.ints
        kernels = [make_token_kernels(*maps, span=span) for span in m.weight_map.spans]
        begin, _, end = kernels[0]
        vocabulary = ("words", "scales", "a", "integers")
        weights = ("quants", "headers", "a", "cache", "integers")
        layers = [
            Launch(run_layer, weights, (layer,))
            for span, (_, run_layer, _) in zip(m.weight_map.spans, kernels, strict=True)
            for layer in range(span.first, span.first + span.count)
        ]
        launches = [
            Launch(begin, vocabulary, ("token", "position")),
            *layers,
            Launch(end, (*m.weight_map.head_arrays, "a", "integers", "logits", "results"), ("step",)),
        ]
        names = ("words", "scales", "quants", "headers", "a", "cache", "integers", "logits")
        return Submission(launches, {name: getattr(m, name) for name in names} | {"results": self._results})

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
