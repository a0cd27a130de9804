"""WINA: an input counts by |x_i| * ||W[:, i]||, the norm of the weights that it meets (alpha = 1 of WiSparse's score).

W is the stack of all matrices that read the site, so that one list of active inputs serves them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.container import Container
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, Site
from spqt_ti.sparsity.capture import capture
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.histogram import LEVELS
from spqt_ti.sparsity.search.swept import Elsewhere

Weights = dict[tuple[int, str], np.ndarray]


@dataclass(frozen=True)
class WinaCalibration:
    """Quantiles of the scores, and the weights that the scores were made with."""

    quantiles: uniform.Calibration
    weights: Weights

    def policy(self, sparsity: float) -> SparsityPolicy:
        """One sparsity at every site, of the scores. Raises PolicyError outside 0 .. 0.99."""
        return dataclasses.replace(self.quantiles.policy(sparsity), method="wina", weights=self.weights)


def column_norms(container: Container) -> Weights:
    """(layer, site) -> f32 [cols]: L2 norm of every column of the dequantised stack."""
    return {
        (layer, site.label): np.sqrt((container.dequantize(container.matrix(layer, site)) ** 2).sum(axis=0))
        for layer in range(container.config.num_hidden_layers)
        for site in Site
    }


def calibrate(
    llama: Llama, container: Container, text: str, tokens: Sequence[int], checkpoint: Checkpoint | None = None,
    elsewhere: Elsewhere | None = None,
) -> WinaCalibration:  # fmt: skip
    """Measure the quantiles of the scores on `tokens` (of `text`, whose hash is kept). `elsewhere`: see `capture`."""
    weights = column_norms(container)
    alphas = [[1.0] * len(SITES)] * container.config.num_hidden_layers
    counted = capture(llama, tokens, uniform.WINDOW, weights, checkpoint, "wina", elsewhere, alphas)
    levels = counted.quantiles(LEVELS)
    source = uniform.Calibration(container.fingerprint, uniform.sha256(text), len(tokens), levels)
    return WinaCalibration(source, weights)
