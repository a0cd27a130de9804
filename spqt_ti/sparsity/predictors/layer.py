"""What a text says of one layer's neurons: the factors of its predictor, and its neurons at every cut.

A layer runs in f32 on a few windows at a time, in neurons on a few hundred at a time: the largest arrays are the inputs
of half the tokens and the sorted predictions of BLOCK neurons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spqt_ti.model.predictors import NeuronPredictor
from spqt_ti.model.reference import activated, gated, unmasked
from spqt_ti.sparsity.kept_arrays import KeptArrays
from spqt_ti.sparsity.predictors.cuts import Cuts
from spqt_ti.sparsity.predictors.factors import factorise
from spqt_ti.sparsity.predictors.settings import Bias, Importance, PredictorSettings
from spqt_ti.sparsity.search.stored_layer import StoredLayer

BLOCK = 256  # neurons
_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True)
class LayerFindings:
    """Of one layer. `fc1`, `fc2`: f32 as stored; `offset`: what a bias of none is, f32 [intermediate]; `jitter`: of the
    whitening; `cuts`: of predictions without bias.
    """

    fc1: np.ndarray
    fc2: np.ndarray
    offset: np.ndarray
    jitter: float
    cuts: Cuts

    def predictor(self, target: float, bias: Bias) -> tuple[NeuronPredictor, dict[str, float]]:
        """The predictor that has a share `target` of neurons and tokens off, and its figures on the second half of the
        text (see Cuts.figures). A bias of NONE heeds no target.
        """
        if bias is Bias.NEURON:
            cuts = self.cuts.choose(target)
            added = self.cuts.bias(cuts)
        elif bias is Bias.GLOBAL:
            cuts, one = self.cuts.choose_one(target)
            added = np.full(len(self.offset), one, np.float32)
        else:
            cuts, added = self.cuts.choose_at(0.0), np.zeros(len(self.offset), np.float32)
        return NeuronPredictor(self.fc1, self.fc2, self.offset + added), self.cuts.figures(cuts)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        kept = {name: getattr(self.cuts, name) for name in ("counts", "highest", "penalties", "lost")}
        return {**kept, "fc1": self.fc1, "fc2": self.fc2, "offset": self.offset, "jitter": np.array(self.jitter)}

    @classmethod
    def from_arrays(cls, arrays: KeptArrays, rank: int, hidden: int, intermediate: int) -> LayerFindings:
        """Read what `arrays` gave; PolicyError for arrays of another shape."""
        counts = arrays.take("counts", "iu", (None,))
        if len(counts) < 2 or counts[0] != 0 or (np.diff(counts) <= 0).any():
            raise arrays.damaged("counts that do not rise from 0")
        grid = (intermediate, len(counts))
        cuts = Cuts(
            counts,
            arrays.take("highest", "f", grid),
            arrays.take("penalties", "f", grid),
            arrays.take("lost", "iu", grid),
        )
        fc1, fc2 = arrays.take("fc1", "f", (rank, hidden)), arrays.take("fc2", "f", (intermediate, rank))
        return cls(fc1, fc2, arrays.take("offset", "f", (intermediate,)), float(arrays.take("jitter", "f", ())), cuts)


def run(layer: StoredLayer, x: np.ndarray, ffn_inputs: np.ndarray | None = None) -> np.ndarray:
    """Put states x f32 [windows, tokens, hidden] through a layer, densely; the states after it.

    `ffn_inputs`: where to put the inputs of gate and up, of the same shape.
    """
    after = np.empty_like(x)
    for first in range(0, len(x), _WINDOWS_AT_ONCE):
        some = slice(first, first + _WINDOWS_AT_ONCE)
        trace = layer.run(x[some], unmasked)
        after[some] = trace.output
        if ffn_inputs is not None:
            ffn_inputs[some] = trace.inputs["gate_up"]
    return after


def examine(layer: StoredLayer, inputs: np.ndarray, rank: int, settings: PredictorSettings) -> LayerFindings:
    """Of the inputs f32 [windows, tokens, hidden] of gate and up: even windows whiten, odd ones say what cuts cost."""
    config = layer.config
    gate, up = np.split(layer.matrices["gate_up"], 2)
    flat = inputs[::2].reshape(-1, config.hidden_size).astype(np.float64)
    factors = factorise(gate, flat.T @ flat if settings.whiten else None, rank)
    del flat
    fc1, fc2 = factors.stored()
    neurons = len(gate)
    biases = layer.biases.get("gate_up", np.zeros(2 * neurons, np.float32))
    gate_bias, up_bias = np.split(biases, 2)
    offset = (gate_bias - np.float32(config.hidden_act_param)).astype(np.float32)
    x = np.ascontiguousarray(inputs[1::2].reshape(-1, config.hidden_size))
    inner = x @ fc1.T
    norms = np.sqrt(np.square(layer.matrices["down"], dtype=np.float64).sum(axis=0))
    parts = []
    for first in range(0, neurons, BLOCK):
        some = slice(first, first + BLOCK)
        g = x @ gate[some].T + gate_bias[some]
        if settings.importance is Importance.GATE:
            importance = activated(config.hidden_act, g, config.hidden_act_param)
        else:
            importance = gated(config, g, x @ up[some].T + up_bias[some])
        if settings.importance is Importance.FULL:
            importance = importance * norms[some]
        parts.append(Cuts.measure(inner @ fc2[some].T + offset[some], importance, g > config.hidden_act_param))
    cuts = Cuts.joined(parts)
    return LayerFindings(fc1, fc2, offset, factors.jitter, cuts)
