"""A model against its dense self where only layers from some point on differ: those before are not run again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.search.divergence import divergence, log_softmax


class PartialRuns:
    """Dense states before every layer and dense log-probabilities of `windows`, each a chunk of 256 tokens at most.

    The first quarter of a window is run and not scored, as in `search/divergence.py`.
    """

    def __init__(self, llama: Llama, windows: Sequence[Sequence[int]]) -> None:
        self._llama, self._windows = llama, windows
        llama.selectors.clear()
        self._states: list[list[np.ndarray]] = []
        self._dense: list[np.ndarray] = []
        for window in windows:
            embedded = llama.embed(window)
            states = [embedded, *llama.layers(embedded, 0)]
            self._states.append(states[:-1])
            self._dense.append(log_softmax(llama.head(states[-1][len(window) // 4 :])))
        self._nll = np.array([self._surprise(part, logs) for part, logs in enumerate(self._dense)])

    def compare(self, first: int) -> np.ndarray:
        """f64 [2]: mean KL(dense || now) in nats, and by how much the mean negative log-likelihood has risen, with the
        selectors as they are and layers before `first` dense.
        """
        kl, nll = [], []
        for part, states in enumerate(self._states):
            now = states[first]
            for after in self._llama.layers(now, first, masked=True):
                now = after
            logs = log_softmax(self._llama.head(now[len(now) // 4 :]))
            kl.append(divergence(self._dense[part], logs).mean())
            nll.append(self._surprise(part, logs))
        return np.array([np.mean(kl), np.mean(nll) - self._nll.mean()])

    def _surprise(self, part: int, logs: np.ndarray) -> float:
        wanted = np.asarray(self._windows[part])[len(self._windows[part]) - len(logs) + 1 :]
        return float(-logs[np.arange(len(wanted)), wanted].mean(dtype=np.float64))
