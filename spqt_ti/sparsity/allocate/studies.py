"""What is measured for an allocation, as studies that any executor runs (`spqt_ti/parallel`).

An item is a list of changes to a dense model, [first layer, layers, amount]; the result f64 [2] is what they cost: mean
KL(dense || changed) in nats, and by how much the mean negative log-likelihood rises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spqt_ti.container import Container
from spqt_ti.convert.prune import importance, kept_width
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, Site
from spqt_ti.sparsity.allocate.partial_runs import PartialRuns

CHANNELS = "spqt_ti.sparsity.allocate.studies:PrunedChannels"
BUDGETS = "spqt_ti.sparsity.allocate.studies:SparseLayers"

_ALL_BUT_ZEROS = np.float32(1e-30)  # a threshold that only what weighs nothing fails

Change = tuple[int, int, float]


class PrunedChannels:
    """FFN channels removed from layers, as `convert/prune.py` removes them (mode `channels`): the least important ones,
    a whole number of 32.

    A channel whose input to down is zero does nothing, as if its rows in gate and up and its column were gone.
    Settings: "windows", token windows to measure on; "calibration", those that importance is taken from; "threads".
    An item's amounts are rates.
    """

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        calibration = settings["calibration"]
        self._llama = _runner(container, settings, calibration)
        self._order = np.argsort(-channel_importance(container, self._llama, calibration), axis=1, kind="stable")
        self._runs = PartialRuns(self._llama, settings["windows"])

    def __call__(self, item: Sequence[Change]) -> np.ndarray:
        """See Study."""
        selectors = self._llama.selectors
        selectors.clear()
        for first, count, rate in item:
            for layer in range(first, first + count):
                width = self._order.shape[1]
                kept = np.zeros(width, np.float32)
                kept[self._order[layer, : kept_width(width, rate)]] = 1
                selectors.weigh(layer, SITES[Site.DOWN], kept)
                selectors.thresholds[layer, Site.DOWN] = _ALL_BUT_ZEROS
        return self._runs.compare(_first_layer(item))


class SparseLayers:
    """Layers at levels of dynamic sparsity.

    Settings: "windows" and "threads" as for PrunedChannels; "thresholds", lists [layers][levels][4]. An item's amounts
    are levels.
    """

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        self._llama = _runner(container, settings)
        self._thresholds = np.array(settings["thresholds"], np.float32)
        self._runs = PartialRuns(self._llama, settings["windows"])

    def __call__(self, item: Sequence[Change]) -> np.ndarray:
        """See Study."""
        self._llama.selectors.clear()
        for first, count, level in item:
            for layer in range(first, first + count):
                self._llama.thresholds[layer] = self._thresholds[layer, int(level)]
        return self._runs.compare(_first_layer(item))


def channel_importance(container: Container, llama: Llama, windows: Sequence[Sequence[int]]) -> np.ndarray:
    """f64 [layers, channels]: `prune.importance` of every layer, on dense runs of `windows`."""
    squares = np.zeros((llama.config.num_hidden_layers, llama.config.intermediate_size))

    def observe(layer: int, site: str, inputs: np.ndarray) -> None:
        if site == SITES[Site.DOWN]:
            squares[layer] += np.square(inputs, dtype=np.float64).sum(axis=0)

    llama.selectors.clear()
    for window in windows:
        llama.reset()
        llama.prefill(window, "none", observer=observe)
    llama.reset()
    downs = (container.dequantize(container.matrix(layer, Site.DOWN)) for layer in range(len(squares)))
    return np.array([importance(down, found) for down, found in zip(downs, squares, strict=True)])


def _runner(container: Container, settings: Mapping[str, Any], more: Sequence[Sequence[int]] = ()) -> Llama:
    longest = max(len(window) for window in (*settings["windows"], *more))
    return Llama(container, backend_name="cpu", threads=settings["threads"], context=longest)


def _first_layer(item: Sequence[Change]) -> int:
    """Where the change begins; the last layer for an item that changes nothing is not asked for."""
    return min(first for first, _, _ in item)
