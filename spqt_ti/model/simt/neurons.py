"""Neuron predictors on a GPU: brought to the device, and given to decode and prefill."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spqt_ti.model.predictors import Executor, NeuronPredictor, padded_rank
from spqt_ti.model.simt.arrays import ModelArrays
from spqt_ti.model.simt.decode import SimtDecode
from spqt_ti.model.simt.neuron_arrays import NeuronArrays, NeuronMap
from spqt_ti.model.simt.prefill import SimtPrefill
from spqt_ti.model.sites import Site, Traffic


class SimtNeurons:
    """Sets the predictors of a model whose decode and prefill share `arrays`."""

    def __init__(self, arrays: ModelArrays, decode: SimtDecode, prefill: SimtPrefill, traffic: Traffic) -> None:
        self._model, self._decode, self._prefill, self._traffic = arrays, decode, prefill, traffic
        self._loaded: list[NeuronPredictor] = []
        self._arrays: NeuronArrays | None = None

    def set(self, predictors: Mapping[int, NeuronPredictor], executor: Executor) -> tuple[Traffic, np.ndarray]:
        """See `model.engine.Neurons`. Raises BackendError where the predictors do not fit the device."""
        config, weight_map = self._model.config, self._model.weight_map
        numbers = np.full(config.num_hidden_layers, -1)
        if not predictors:
            self._decode.use_neurons(None, numbers)
            self._prefill.use_neurons(None, numbers)
            return self._traffic, np.zeros(len(numbers))
        # The same objects are there already: another executor, or back from a dense run.
        if self._arrays is None or list(map(id, predictors.values())) != list(map(id, self._loaded)):
            rank = padded_rank([predictor.rank for predictor in predictors.values()])
            segments = weight_map.matrices[Site.DOWN.label].segments.count
            sizes = config.hidden_size, config.intermediate_size, segments, len(predictors)
            self._arrays = NeuronArrays(NeuronMap(rank, *sizes), list(predictors.values()), len(numbers))
            self._loaded = list(predictors.values())
        numbers[list(predictors)] = range(len(predictors))
        self._decode.use_neurons(self._arrays, numbers, executor is Executor.PARALLEL)
        self._prefill.use_neurons(self._arrays, numbers)
        nbytes = np.where(numbers >= 0, float(self._arrays.map.nbytes), 0.0)
        return self._traffic_of(numbers), nbytes

    def _traffic_of(self, numbers: np.ndarray) -> Traffic:
        """What a token reads: gate and up of layers with predictors by columns, not whole."""
        gate_up = self._model.weight_map.matrices[Site.GATE_UP.label].shape
        nbytes = 16 * (gate_up.quants + gate_up.headers)
        columns = self._traffic.columns.copy()
        columns[numbers >= 0, Site.GATE_UP] = nbytes / gate_up.cols
        return Traffic(columns, self._traffic.head - int((numbers >= 0).sum()) * nbytes)
