"""Neuron predictors on the CPU: brought to where the kernels read them, and taken away again."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spqt_ti.backend import host_view
from spqt_ti.model.cpu.decode import DecodeStep
from spqt_ti.model.cpu.neuron_map import NeuronMap, factor_tiles
from spqt_ti.model.cpu.prefill import Prefill
from spqt_ti.model.cpu.weights import Weights
from spqt_ti.model.predictors import Executor, NeuronPredictor, padded_rank
from spqt_ti.model.sites import Traffic


class WorkerNeurons:
    """Sets the predictors of a model whose decode and prefill share `weights`."""

    def __init__(self, weights: Weights, decode: DecodeStep, prefill: Prefill, traffic: Traffic) -> None:
        self._weights, self._decode, self._prefill, self._traffic = weights, decode, prefill, traffic
        self._loaded: list[NeuronPredictor] = []

    def set(self, predictors: Mapping[int, NeuronPredictor], executor: Executor) -> tuple[Traffic, np.ndarray]:
        """See `model.engine.Neurons`."""
        config = self._weights.map.config
        layers = config.num_hidden_layers
        numbers = np.full(layers, -1, np.int32)
        if not predictors:
            self._decode.use_neurons(None, numbers)
            self._prefill.use_neurons(None, numbers)
            return self._traffic, np.zeros(layers)
        rank = padded_rank([predictor.rank for predictor in predictors.values()])
        words, scales = self._weights.vocabulary_ends
        neurons = NeuronMap(rank, config.hidden_size, config.intermediate_size, words, scales)
        # The same objects are there already: another executor, or back from a dense run.
        if list(map(id, predictors.values())) != list(map(id, self._loaded)):
            tiles = [factor_tiles(predictor, rank) for predictor in predictors.values()]
            self._weights.put_behind_vocabulary(*(np.concatenate(parts) for parts in zip(*tiles, strict=True)))
            self._loaded = list(predictors.values())
        biases = host_view(self._weights.constants)[self._weights.map.neuron_biases :].reshape(layers, -1)
        for number, (layer, predictor) in enumerate(predictors.items()):
            numbers[layer] = number
            biases[layer] = predictor.bias
        self._decode.use_neurons(neurons, numbers, executor is Executor.PARALLEL)
        self._prefill.use_neurons(neurons, numbers)
        return self._traffic, np.where(numbers >= 0, neurons.nbytes, 0.0)
