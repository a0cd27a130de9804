"""Active inputs counted during masked prefill, as decoding would count them."""

from __future__ import annotations

import numpy as np

from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, inputs_per_layer, realised_sparsity


class ActiveInputs:
    """An Observer of masked prefill: inputs that are read, f64 [layers, 4], of all tokens together.

    A site whose threshold is 0 runs dense: all its inputs are read, whatever they are.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self.total = np.zeros(llama.thresholds.shape)
        self._inputs = inputs_per_layer(llama.config)
        self._tokens = np.zeros(llama.thresholds.shape)

    def __call__(self, layer: int, site: str, inputs: np.ndarray) -> None:
        """Count a chunk: masked inputs f32 [tokens, cols]."""
        at = layer, SITES.index(site)
        skips = self._llama.thresholds[at] > 0
        self.total[at] += np.count_nonzero(inputs) if skips else inputs.size
        self._tokens[at] += len(inputs)

    @property
    def mean(self) -> np.ndarray:
        """Inputs that a token reads on average, f64 [layers, 4]."""
        return self.total / self._tokens

    @property
    def share_skipped(self) -> np.ndarray:
        """Share of each site's inputs that was skipped, f64 [layers, 4]."""
        return 1 - self.total / (self._tokens * self._inputs)

    @property
    def realised_sparsity(self) -> float:
        """Share of the layers' weights that was skipped."""
        return realised_sparsity(self._llama.config, self.mean)
