"""Neuron predictors on a text that they were not made from, in NumPy: the reference that executors are held to.

A feed-forward network with a predictor is the dense one with neurons masked whose prediction is not above zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.model.config import ModelConfig
from spqt_ti.model.predictors import NeuronPredictor
from spqt_ti.model.reference import Layer, LayerMask, Reference, activated
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.search.divergence import divergence, log_softmax


@dataclass
class NeuronCounts:
    """Of one layer's neurons and tokens: how many were on, predicted, and both."""

    all: int = 0
    on: int = 0
    predicted: int = 0
    both: int = 0

    def add(self, on: np.ndarray, predicted: np.ndarray) -> None:
        """Count bool [..., neurons]."""
        self.all += on.size
        self.on += int(on.sum())
        self.predicted += int(predicted.sum())
        self.both += int((on & predicted).sum())

    def figures(self) -> dict[str, float]:
        """Recall, precision, predicted and true density."""
        return {
            "recall": self.both / self.on if self.on else 1.0,
            "precision": self.both / self.predicted if self.predicted else 1.0,
            "predicted_density": self.predicted / self.all,
            "true_density": self.on / self.all,
        }


class NeuronMask:
    """A LayerMask of `Reference.logits` that runs by predictors and counts; layers without one are dense."""

    def __init__(self, layers: Sequence[Layer], predictors: Mapping[int, NeuronPredictor]) -> None:
        self._layers, self._predictors = layers, predictors
        self.counts = {layer: NeuronCounts() for layer in predictors}
        self._predicted: dict[int, np.ndarray] = {}

    def __call__(self, layer: int, site: str, inputs: np.ndarray) -> np.ndarray:
        """Keep what is predicted from the inputs of gate; mask those of down."""
        if layer not in self._predictors:
            return inputs
        if site == "gate_up":
            gate = gate_of(self._layers[layer], inputs)
            self._predicted[layer] = self._predictors[layer].predict(inputs)
            self.counts[layer].add(gate > self._layers[layer].config.hidden_act_param, self._predicted[layer])
        return np.where(self._predicted[layer], inputs, inputs.dtype.type(0)) if site == "down" else inputs


class MagnitudeMask:
    """A LayerMask of `Reference.logits` that masks neurons whose activated gate is at most a layer's threshold in
    magnitude (CATS, arXiv 2404.08763), for any activation. `thresholds`: f32 [layers].
    """

    def __init__(self, layers: Sequence[Layer], thresholds: np.ndarray) -> None:
        self._layers, self._thresholds, self._on = layers, thresholds, np.zeros(0, bool)
        self.counts = [0, 0]  # on, all

    def __call__(self, layer: int, site: str, inputs: np.ndarray) -> np.ndarray:
        """Compute gate from its inputs; mask those of down."""
        if site == "gate_up":
            self._on = activated_gate(self._layers[layer], inputs) > self._thresholds[layer]
            self.counts = [self.counts[0] + int(self._on.sum()), self.counts[1] + self._on.size]
        return np.where(self._on, inputs, inputs.dtype.type(0)) if site == "down" else inputs

    def density(self) -> float:
        """Share of the neurons that were on."""
        return self.counts[0] / self.counts[1]


class InputMask:
    """A LayerMask of `Reference.logits` that masks inputs of at most a threshold: f32 [layers, 4], 0 for none."""

    def __init__(self, thresholds: np.ndarray) -> None:
        self._thresholds = thresholds
        self.counts = np.zeros((*thresholds.shape, 2), np.int64)  # active, all

    def __call__(self, layer: int, site: str, inputs: np.ndarray) -> np.ndarray:
        """Mask the inputs of a site."""
        at = layer, SITES.index(site)
        t = self._thresholds[at]
        active = np.abs(inputs) > t if t > 0 else np.ones(inputs.shape, bool)
        self.counts[at] += active.sum(), active.size
        return np.where(active, inputs, inputs.dtype.type(0))

    def density(self) -> np.ndarray:
        """Share of a site's inputs that were active, f64 [layers, 4]."""
        found: np.ndarray = self.counts[..., 0] / self.counts[..., 1]
        return found


def activated_gate(layer: Layer, inputs: np.ndarray) -> np.ndarray:
    """|act(gate x)| of inputs [..., hidden]: [..., neurons]."""
    config = layer.config
    found: np.ndarray = np.abs(activated(config.hidden_act, gate_of(layer, inputs), config.hidden_act_param))
    return found


def gate_of(layer: Layer, inputs: np.ndarray) -> np.ndarray:
    """gate x of inputs [..., hidden]: [..., neurons]."""
    neurons = len(layer.matrices["gate_up"]) // 2
    gate = inputs @ layer.matrices["gate_up"][:neurons].T
    return gate + layer.biases["gate_up"][:neurons] if "gate_up" in layer.biases else gate


@dataclass
class NeuronScore:
    """A policy on windows of a text: per window means of the tokens of its second half."""

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    layers: list[dict[str, float]] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        """Over all windows."""
        return float(np.exp(np.mean(self.nll)))

    def mean(self, figure: str) -> float:
        """A figure of NeuronCounts, mean over layers."""
        return float(np.mean([layer[figure] for layer in self.layers]))


def score(
    reference: Reference, windows: Sequence[Sequence[int]], dense: Sequence[np.ndarray] | None,
    predictors: Mapping[int, NeuronPredictor],
) -> tuple[NeuronScore, list[np.ndarray]]:  # fmt: skip
    """Run windows by predictors ({}: densely); also the log probabilities f32 [tokens, vocab] of their second halves.

    `dense`: those of a dense run, which the divergence is from; None: this is one.
    """
    mask = NeuronMask(reference.layers, predictors)
    result, logs = score_mask(reference, windows, dense, mask)
    result.layers = [counts.figures() for counts in mask.counts.values()]
    return result, logs


def score_mask(
    reference: Reference, windows: Sequence[Sequence[int]], dense: Sequence[np.ndarray] | None, mask: LayerMask | None
) -> tuple[NeuronScore, list[np.ndarray]]:
    """As `score`, with any mask; None: densely."""
    result, logs = NeuronScore(), []
    for number, window in enumerate(windows):
        half = len(window) // 2
        log = log_softmax(reference.logits(window, half, mask)[:-1])
        wanted = np.asarray(window[half + 1 :])
        result.nll.append(float(-log[np.arange(len(wanted)), wanted].mean(dtype=np.float64)))
        result.kl.append(float(divergence(log if dense is None else dense[number], log).mean()))
        logs.append(log)
    return result, logs


PREDICTOR_BITS, WEIGHT_BITS = 8.5, 4.5  # Q8_0, in which engines keep factors, and Q4_K


def bytes_per_token(config: ModelConfig, rank: int, gate: float, up: float, executor: str = "sequential") -> float:
    """Bytes that a feed-forward network in Q4_K reads as a share of its dense ones: with a predictor of `rank` (0:
    none), a share `gate` of neurons predicted, `up` of them on as well.
    """
    hidden, neurons = config.hidden_size, config.intermediate_size
    predictor = rank * (hidden + neurons) / (3 * hidden * neurons) * PREDICTOR_BITS / WEIGHT_BITS
    return predictor + (gate + (up if executor == "sequential" else gate) + up) / 3
