"""How far thresholds move the model's next-token distributions on a few windows of text: the fitness of the search for
layer budgets.

An individual is compared with the one it descends from: layers before the first that differs are not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spqt_ti.model.runner import Llama
from spqt_ti.sparsity.policy import be_dense
from spqt_ti.sparsity.search.evolution import Levels


class BudgetFitness:
    """Mean KL(dense || sparse), in nats, over every window but its first quarter, which is sparse too but not scored.

    `thresholds`: f32 [layers, levels, 4] of every layer at every level; level 0 of an individual is in the column
    `zero`. `weights`: (layer, site) -> f32 [cols]. The runner's selectors are this object's as long as it is used.
    """

    def __init__(
        self,
        llama: Llama,
        windows: Sequence[Sequence[int]],
        thresholds: np.ndarray,
        zero: int,
        weights: Mapping[tuple[int, str], np.ndarray],
    ) -> None:
        self.parts = len(windows)
        self._llama, self._thresholds, self._zero = llama, thresholds, zero
        self._settled: Levels = ()
        self._states: list[list[np.ndarray]] = []  # per window, before each layer, of the individual settled on
        self._embedded = [llama.embed(window) for window in windows]
        be_dense(llama)
        self._dense = [log_softmax(self._logits(states, 0, masked=False)) for states in self._embedded]
        for (layer, site), weight in weights.items():
            llama.selectors.weigh(layer, site, weight)

    def costs(self, levels: Levels, parts: Sequence[int]) -> np.ndarray:
        """f64 [len(parts)]."""
        self._open_gates(levels)
        first = next((i for i, (a, b) in enumerate(zip(levels, self._settled, strict=True)) if a != b), len(levels) - 1)
        means = []
        for part in parts:
            logits = self._logits(self._states[part][first], first, masked=True)
            means.append(float(divergence(self._dense[part], log_softmax(logits)).mean()))
        return np.array(means)

    def settle(self, levels: Levels) -> None:
        """Keep the states of this individual before every layer."""
        if levels == self._settled:
            return
        self._open_gates(levels)
        self._settled = levels
        self._states = [
            [states, *self._llama.layers(states, 0, masked=True)][: len(levels)] for states in self._embedded
        ]

    def _open_gates(self, levels: Levels) -> None:
        for layer, level in enumerate(levels):
            self._llama.thresholds[layer] = self._thresholds[layer, self._zero + level]

    def _logits(self, states: np.ndarray, first: int, masked: bool) -> np.ndarray:
        for after in self._llama.layers(states, first, masked):
            states = after
        return self._llama.head(states[len(states) // 4 :])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """f32 [n, vocab], in place; sums in f64."""
    logits -= logits.max(axis=-1, keepdims=True)
    for row in logits:
        row -= np.float32(np.log(np.exp(row).sum(dtype=np.float64)))
    return logits


def divergence(dense: np.ndarray, sparse: np.ndarray) -> np.ndarray:
    """KL(dense || sparse) in nats f64 [n], of log-probabilities f32 [n, vocab]."""
    found = [(np.exp(p) * (p - q)).sum(dtype=np.float64) for p, q in zip(dense, sparse, strict=True)]
    return np.maximum(np.array(found), 0.0)
