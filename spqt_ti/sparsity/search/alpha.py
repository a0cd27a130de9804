"""Which power of its column's norm an input counts with: the score |x_i| * ||W[:, i]||^alpha of WiSparse (arXiv
2602.14452). alpha = 0 is TEAL's score, 1 WINA's.

The grid and the loss are ours, as the paper's are not public: site after site, the alpha with which the layer's output
loses least where every site skips LEVEL. The layer's output and not the site's own product, which is worse: what a
product loses in one direction the layer may not use (docs/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.container import Container
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.search.scores import SiteWeights, score, threshold_mask, threshold_of_share
from spqt_ti.sparsity.search.stored_layer import StoredLayer, relative_error, unmasked

ALPHAS = tuple(round(0.1 * i, 1) for i in range(16))
LEVEL = 0.5  # of every site while alphas are compared: one choice serves all levels


@dataclass(frozen=True)
class Alphas:
    """The best alpha of every site of a layer, f64 [4], and the losses f64 [4, len(ALPHAS)] that it was chosen by."""

    best: np.ndarray
    losses: np.ndarray


def column_weights(matrix: np.ndarray, alpha: float) -> np.ndarray | None:
    """c f32 [cols]: the L2 norms of the columns of f32 [rows, cols], to the power alpha; None for alpha = 0."""
    if alpha == 0:
        return None
    return (np.sqrt(np.square(matrix).sum(axis=0)) ** np.float32(alpha)).astype(np.float32)


def site_weights(stored: StoredLayer, alphas: np.ndarray) -> dict[str, np.ndarray]:
    """The weights of a layer's sites with alphas f64 [4]; none for a site whose alpha is 0."""
    found = {s: column_weights(stored.matrices[s], float(a)) for s, a in zip(SITES, alphas, strict=True)}
    return {site: c for site, c in found.items() if c is not None}


def weights_of(container: Container, alphas: Sequence[Sequence[float]]) -> dict[tuple[int, str], np.ndarray]:
    """(layer, site) -> weights f32 [cols] with alphas [layers][4]; layers without any are not read."""
    found: dict[tuple[int, str], np.ndarray] = {}
    for layer, of_sites in enumerate(alphas):
        if any(of_sites):
            stored = StoredLayer.load(container, layer)
            found |= {(layer, site): c for site, c in site_weights(stored, np.array(of_sites)).items()}
    return found


def search(stored: StoredLayer, x: np.ndarray) -> Alphas:
    """Compare all ALPHAS at every site of a layer with inputs x f32 [windows, tokens, hidden]. Sites before the one in
    question have the alpha chosen for them, those after it 0.
    """
    dense = stored.run(x, unmasked)
    thresholds = np.array([threshold_of_share(np.abs(dense.inputs[site]), LEVEL) for site in SITES])
    best, losses = np.zeros(len(SITES)), np.zeros((len(SITES), len(ALPHAS)))
    weights: dict[str, np.ndarray] = {}
    trace = dense
    for i, site in enumerate(SITES):
        tried = [_Tried.of(stored, site, alpha, dense.inputs[site], thresholds, weights) for alpha in ALPHAS]
        # What comes before the site is as the last choice left it.
        runs = [stored.run(x, threshold_mask(t.thresholds, t.weights), site, trace) for t in tried]
        losses[i] = [relative_error(run.output, dense.output) for run in runs]
        choice = int(losses[i].argmin())
        best[i], trace = ALPHAS[choice], runs[choice]
        thresholds, weights = tried[choice].thresholds, tried[choice].weights
    return Alphas(best, losses)


@dataclass(frozen=True)
class _Tried:
    """Thresholds f32 [4] and weights of a layer's sites with an alpha at one of them."""

    thresholds: np.ndarray
    weights: dict[str, np.ndarray]

    @classmethod
    def of(
        cls,
        stored: StoredLayer,
        site: str,
        alpha: float,
        inputs: np.ndarray,
        thresholds: np.ndarray,
        weights: SiteWeights,
    ) -> _Tried:
        """`thresholds` and `weights` of the other sites, and at `site` what skips LEVEL of the dense run's inputs."""
        weight, changed = column_weights(stored.matrices[site], alpha), thresholds.copy()
        changed[SITES.index(site)] = threshold_of_share(score(inputs, weight), LEVEL)
        return cls(changed, {**weights, **({} if weight is None else {site: weight})})
