"""Neuron sparsity by predictors that need no training: SVD contextual sparsity predictors (arXiv 2603.14110).

For models whose activation is zero for most neurons of a token. Layer by layer, on dequantised weights: one pass over a
text with factors and cuts serves every sparsity.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spqt_ti.container import Container
from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES, Site
from spqt_ti.progress import progress
from spqt_ti.sparsity.checkpoint import Checkpoint, Value
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.predictors.layer import LayerFindings, examine, run
from spqt_ti.sparsity.predictors.settings import Bias, PredictorSettings
from spqt_ti.sparsity.search.sample import embeddings
from spqt_ti.sparsity.search.stored_layer import StoredLayer, calibration_threads
from spqt_ti.threads import blas_threads

FIRST_LAYERS, FIRST_LESS = 2, 0.1  # the first layers are asked for this much less

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SvdCalibration:
    """What a text says of every layer; `source` goes into every policy."""

    model: str
    layers: list[LayerFindings]
    settings: PredictorSettings
    source: dict[str, Any]

    def policy(self, sparsity: float) -> SparsityPolicy:
        """Predictors of every layer. `sparsity`: neurons that they say are off, as a share of those that are; below 1,
        so that few that are on are missed. PolicyError outside 0 .. 1.
        """
        if not 0 <= sparsity <= 1:
            raise PolicyError(f"sparsity must be between 0 and 1 for SVD predictors, not {sparsity}")
        predictors, figures = {}, []
        for layer, findings in enumerate(self.layers):
            share = sparsity if layer >= FIRST_LAYERS else max(0.0, sparsity - FIRST_LESS)
            target = share * (1 - findings.cuts.true_density)
            predictors[layer], found = findings.predictor(target, self.settings.bias)
            figures.append({name: round(value, 4) for name, value in found.items()})
        return SparsityPolicy(
            "svd",
            sparsity,
            np.zeros((len(self.layers), len(SITES)), np.float32),
            self.model,
            {**self.source, "layers": figures},
            predictors=predictors,
            executor=self.settings.executor,
        )


def with_attention(policy: SparsityPolicy, thresholds: np.ndarray, level: float) -> SparsityPolicy:
    """The policy with thresholds (f32 [layers, 4]) at qkv and o, which skip a share `level` of their inputs."""
    attention = thresholds.copy()
    attention[:, [Site.GATE_UP, Site.DOWN]] = 0
    source = {**policy.calibration, "attention": level}
    return dataclasses.replace(policy, thresholds=attention, calibration=source)


def calibrate(
    container: Container,
    text: str,
    tokens: Sequence[int],
    settings: PredictorSettings | None = None,
    checkpoint: Checkpoint | None = None,
    threads: int = 1,
) -> SvdCalibration:
    """Of `tokens` (of `text`, whose hash is kept): even windows give the factors, odd ones the biases.

    Raises PolicyError for a model whose activation has no exact zeros or whose layers differ in width, and for a rank
    above its hidden size.
    """
    settings, checkpoint = settings or PredictorSettings(), checkpoint or Checkpoint()
    config = container.config
    if not config.has_exact_zeros:
        raise PolicyError(
            f"neuron predictors are for models with relu, relu2 or fatrelu: this one has {config.hidden_act}, which is "
            "zero for no neuron; take another method"
        )
    if config.intermediate_sizes:
        raise PolicyError(
            "neuron predictors are for models whose layers are as wide as one another: this one is pruned"
        )
    rank = settings.rank_for(config.hidden_size)
    windows = _windows(tokens, config.max_position_embeddings)
    halves = [sum(len(window) for window in windows[half::2]) for half in range(2)]
    if settings.whiten and halves[0] < config.hidden_size:
        _log.warning(
            "%d tokens do not span the %d inputs of a layer: jitter takes the place of the rest. A longer text gives "
            "better predictors.", halves[0], config.hidden_size,
        )  # fmt: skip
    kept: dict[str, Value] = {
        "rank": rank, "whiten": int(settings.whiten), "importance": settings.importance.value,
        "window": len(windows[0]),
    }  # fmt: skip
    whitened = "whitened" if settings.whiten else "plain"
    kept_as = f"svd-{rank}-{whitened}-{settings.importance.value.replace('*', '-')}"  # others have files of their own
    layers = []
    x = embeddings(container, windows)
    with blas_threads(calibration_threads(config, threads)):
        for index in progress(range(config.num_hidden_layers), desc="SVD", unit="layers"):
            layer = StoredLayer.load(container, index)
            arrays = checkpoint.load(f"{kept_as}-{index}", **kept)
            if arrays is not None:
                sizes = rank, config.hidden_size, layer.matrices["down"].shape[1]
                layers.append(LayerFindings.from_arrays(arrays, *sizes))
                x = run(layer, x)
                continue
            inputs = np.empty_like(x)
            x = run(layer, x, inputs)
            layers.append(examine(layer, inputs, rank, settings))
            checkpoint.save(f"{kept_as}-{index}", layers[-1].arrays(), **kept)
    source = {
        "text_sha256": uniform.sha256(text), "tokens": sum(halves), "rank": rank, "whiten": settings.whiten,
        "bias": settings.bias.value, "importance": settings.importance.value,
        "jitter": max(findings.jitter for findings in layers),
    }  # fmt: skip
    return SvdCalibration(container.fingerprint, layers, settings, source)


def _windows(tokens: Sequence[int], positions: int) -> list[Sequence[int]]:
    """All of the text in windows of one length, an even number of them."""
    length = min(uniform.WINDOW, positions, len(tokens) // 2)
    count = len(tokens) // length // 2 * 2
    return [tokens[i * length : (i + 1) * length] for i in range(count)]


__all__ = ["Bias", "PredictorSettings", "SvdCalibration", "calibrate"]
