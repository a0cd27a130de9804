"""Selectors in the memory that the CPU's kernels read."""

from __future__ import annotations

from spqt_ti.backend import host_view
from spqt_ti.model.cpu.weights import Weights
from spqt_ti.model.selectors import Selectors
from spqt_ti.model.sites import inputs_per_layer


class WorkerSelectors(Selectors):
    """Selectors behind the constants of `weights`, which the CPU's decode and prefill read in place."""

    def __init__(self, weights: Weights) -> None:
        selectors = weights.map.selector_map
        values = host_view(weights.constants)[weights.map.selectors :][: selectors.vectors].reshape(-1)
        values[:] = 0
        super().__init__(selectors, inputs_per_layer(weights.map.config), values)
