"""What a runner checks and counts of layers whose feed-forward network is run by a neuron predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.model.sites import Site, Traffic

__all__ = ["PredictedLayers", "check_predictors", "executor_of"]


@dataclass(frozen=True)
class PredictedLayers:
    """What a decoded token reads where layers predict neurons. `predictor_bytes`: f64 [layers], 0 without predictor."""

    traffic: Traffic
    predictor_bytes: np.ndarray
    hidden: int
    intermediate: int

    def active(self, active: np.ndarray, rows: np.ndarray, tokens: int) -> np.ndarray:
        """Active inputs f64 [layers, 4] of these tokens, of what an engine has counted: active inputs [layers, 4], gate
        and up rows [layers, 2].

        Gate and up of a layer with a predictor count by the bytes that were read: as many inputs as the rows and the
        predictor have, in columns of gate and up. So bytes and shares that follow from active inputs are right.
        """
        predicted, site = self.predictor_bytes > 0, Site.GATE_UP
        read = rows.sum(axis=1) / (2 * self.intermediate) * self.hidden
        read += tokens * self.predictor_bytes / np.maximum(self.traffic.columns[:, site], 1)
        counted = active.astype(np.float64)
        counted[predicted, site] = read[predicted]
        return counted


def check_predictors(container: Container, predictors: Mapping[int, NeuronPredictor]) -> None:
    """PolicyError for layers that the model does not have, predictors of another size, layers of different widths, an
    input of down that is turned, and gate and up that are not in the row layout.
    """
    config = container.config
    if predictors and config.rotates_down:
        raise PolicyError(
            "neuron predictors need an input of down with a place for each neuron, and this model turns it: quantise "
            "without --rotate down"
        )
    if predictors and config.intermediate_sizes:
        raise PolicyError("neuron predictors run in models whose layers have one width, and this model's differ")
    for layer, predictor in predictors.items():
        if not 0 <= layer < config.num_hidden_layers:
            raise PolicyError(f"predictor for layer {layer} of a model with {config.num_hidden_layers} layers")
        sizes, expected = (predictor.hidden, predictor.intermediate), (config.hidden_size, config.intermediate_size)
        if sizes != expected:
            raise PolicyError(
                f"the predictor of layer {layer} has {sizes[0]} inputs and {sizes[1]} neurons, the model {expected[0]} "
                f"and {expected[1]}"
            )
        matrix = container.matrix(layer, Site.GATE_UP)
        if matrix.layout != "row":
            raise PolicyError(
                f"neuron predictors skip rows of gate and up, and {matrix.name} is stored as {matrix.storage}: "
                "quantise with --layout zigzag,gate_up=row"
            )


def executor_of(name: Executor | str) -> Executor:
    """The executor of this name. PolicyError for another."""
    try:
        return Executor(name)
    except ValueError:
        names = ", ".join(executor.value for executor in Executor)
        raise PolicyError(f"unknown executor {name!r:.40}; there are: {names}") from None
