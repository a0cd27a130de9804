"""Active inputs counted during masked prefill, as decoding would count them."""

from __future__ import annotations

import numpy as np

from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, inputs_per_layer, realised_sparsity


class ActiveInputs:
    """An Observer of masked prefill: inputs that are read, f64 [layers, 4], of all tokens together.

    A site whose threshold is 0 runs dense: all its inputs are read, whatever they are. Where a layer has a neuron
    predictor, gate and up count by the bytes that are read, rows of theirs and the predictor itself, as they do when
    decoding (PredictedLayers): as many inputs as have those bytes.
    """

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self.total = np.zeros(llama.thresholds.shape)
        self._inputs = inputs_per_layer(llama.config)
        self._tokens = np.zeros(llama.thresholds.shape)

    def __call__(self, layer: int, site: str, inputs: np.ndarray) -> None:
        """Count a chunk: masked inputs f32 [tokens, cols]."""
        at = layer, SITES.index(site)
        predictor = self._llama.predictors.get(layer)
        if predictor is not None and site in ("gate_up", "down"):
            self._count_neurons(layer, site, inputs, predictor)
            return
        skips = self._llama.thresholds[at] > 0
        self.total[at] += np.count_nonzero(inputs) if skips else inputs.size
        self._tokens[at] += len(inputs)

    def _count_neurons(self, layer: int, site: str, inputs: np.ndarray, predictor: NeuronPredictor) -> None:
        """Gate rows of predicted neurons, up rows of those that are on as well; in parallel, of the same ones."""
        at, gate_up = (layer, SITES.index(site)), (layer, SITES.index("gate_up"))
        per_row = predictor.hidden / (2 * predictor.intermediate)  # inputs that have as many weights as a row
        sequential = self._llama.executor is Executor.SEQUENTIAL
        self._tokens[at] += len(inputs)
        if site == "gate_up":
            rows = int(np.count_nonzero(predictor.predict(inputs)))
            both = 1 if sequential else 2
            own = self._llama.predictor_bytes[layer] / self._llama.traffic.columns[layer, SITES.index("gate_up")]
            self.total[at] += both * rows * per_row + len(inputs) * own
            return
        on = int(np.count_nonzero(inputs))
        self.total[at] += on
        if sequential:
            self.total[gate_up] += on * per_row

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
