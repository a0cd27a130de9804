"""Greedy sparsity inside a layer (TEAL's algorithm 1): the next step goes to the site where it costs the layer's output
least.

The unit is a site, not a projection, since q, k, v and gate, up share a list of active inputs here. A step is the same
number of weights at every site, from the real shapes. The error is relative, over all tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.kept_arrays import KeptArrays
from spqt_ti.sparsity.search.scores import SiteWeights, quantiles, score, threshold_mask, thresholds_at
from spqt_ti.sparsity.search.stored_layer import StoredLayer, Trace, relative_error, unmasked

STEP = 0.02  # of a layer's weights, per pick
MOST = 0.9  # where the search ends
WINDOW = 64  # tokens of a window of the sample that candidates are compared on, spread over the text

_FIELDS = ("effective", "errors", "sparsities")  # of a Path


@dataclass(frozen=True)
class Path:
    """Picks of one layer: after each, the layer's sparsity (share of its weights), its error, and every site's
    sparsity. `effective` f64 [n], `errors` f64 [n], `sparsities` f64 [n, 4]; the first entry is dense.
    """

    effective: np.ndarray
    errors: np.ndarray
    sparsities: np.ndarray

    def at(self, sparsity: float) -> np.ndarray:
        """Sparsities f64 [4] of the sites where the layer's is `sparsity`: between two picks, a part of the step."""
        return np.array([np.interp(sparsity, self.effective, column) for column in self.sparsities.T])


@dataclass
class _Candidate:
    """A step at one site: the sparsities with it, and the layer's run with them."""

    sparsities: np.ndarray
    trace: Trace


def allocate(stored: StoredLayer, x: np.ndarray, weights: SiteWeights | None = None, step: float = STEP) -> Path:
    """Picks for a layer with inputs x f32 [windows, tokens, hidden], from dense to MOST, `step` of its
    weights per pick: the cheapest every time.

    A site's threshold at a sparsity is the quantile of its scores in the dense run.
    """
    weights = weights or {}
    sizes = np.array([stored.matrices[site].size for site in SITES], np.float64)
    steps = step * sizes.sum() / sizes
    dense = stored.run(x, unmasked)
    table = np.stack([quantiles(score(dense.inputs[site], weights.get(site))) for site in SITES])
    sparsities, trace, changed = np.zeros(len(SITES)), dense, 0
    known: dict[int, _Candidate] = {}
    record = [(0.0, 0.0, sparsities)]
    while record[-1][0] < MOST - 1e-9:
        for i in range(len(SITES)):
            if sparsities[i] >= MOST:
                known.pop(i, None)
                continue
            tried = sparsities.copy()
            tried[i] = min(tried[i] + steps[i], MOST)
            mask = threshold_mask(thresholds_at(table, tried), weights)
            # A step before the last pick: its own run up to there still holds. Others begin where they differ.
            reused = i < changed and i in known
            since, before = (changed, known[i].trace) if reused else (i, trace)
            known[i] = _Candidate(tried, stored.run(x, mask, SITES[since], before))
        errors = {i: relative_error(candidate.trace.output, dense.output) for i, candidate in known.items()}
        changed = min(errors, key=errors.__getitem__)
        sparsities, trace = known[changed].sparsities, known[changed].trace
        record.append((float(sparsities @ sizes / sizes.sum()), errors[changed], sparsities))
    effective, errors_, rows = zip(*record, strict=True)
    return Path(np.array(effective), np.array(errors_), np.array(rows))


def to_arrays(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """What a checkpoint keeps of the picks of the first layers."""
    return {f"{layer}.{field}": getattr(path, field) for layer, path in enumerate(paths) for field in _FIELDS}


def from_arrays(arrays: KeptArrays | None) -> list[Path]:
    """The picks that `to_arrays` took apart; none of None. Raises PolicyError for arrays that are no picks."""
    if arrays is None:
        return []
    paths: list[Path] = []
    while f"{len(paths)}.{_FIELDS[0]}" in arrays:
        layer = len(paths)
        effective = arrays.take(f"{layer}.effective", "f", (None,))
        errors = arrays.take(f"{layer}.errors", "f", effective.shape)
        sparsities = arrays.take(f"{layer}.sparsities", "f", (len(effective), len(SITES)))
        if not effective.size or (np.diff(effective) < 0).any() or not ((sparsities >= 0) & (sparsities <= 1)).all():
            raise arrays.damaged(f"the picks of layer {layer} are no path from dense to sparse")
        paths.append(Path(effective, errors, sparsities))
    return paths
