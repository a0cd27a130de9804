"""TEAL (arXiv 2408.14690): inside every block the sparsity goes where it costs the block's output least.

Greedy, as in the paper's algorithm 1, with three differences. The unit is a site, not a projection, since q, k, v and
gate, up share a list of active inputs here. A step is the same number of weights at every site, from the real shapes.
The error is taken over all tokens of the sample, and thresholds are quantiles of |x| over its full range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from spqt_ti.errors import PolicyError
from spqt_ti.model.container import Container
from spqt_ti.model.llama import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity import uniform
from spqt_ti.sparsity.block import Block, Mask, unmasked
from spqt_ti.sparsity.policy import SparsityPolicy

STEP = 0.02  # of a block's weights, per pick
MOST = 0.9  # where the search ends
WINDOWS, WINDOW = 4, 64  # the sample that candidates are compared on, spread over the text


@dataclass(frozen=True)
class Path:
    """Picks of one block: after each, the block's sparsity (share of its weights), its error, and every site's
    sparsity. `effective` f64 [n], `errors` f64 [n], `sparsities` f64 [n, 4]; the first entry is dense.
    """

    effective: np.ndarray
    errors: np.ndarray
    sparsities: np.ndarray

    def nearest(self, sparsity: float) -> np.ndarray:
        """Sparsities f64 [4] of the entry nearest to a level."""
        return self.sparsities[int(np.argmin(np.abs(self.effective - sparsity)))]


@dataclass(frozen=True)
class TealCalibration:
    """Quantiles of every site and the picks of every block."""

    quantiles: uniform.Calibration
    paths: list[Path]

    def policy(self, sparsity: float) -> SparsityPolicy:
        """The picks nearest to `sparsity` in every block. Raises PolicyError outside 0 .. 0.9."""
        if not 0 <= sparsity <= MOST:
            raise PolicyError(f"sparsity must be between 0 and {MOST} for TEAL, not {sparsity}")
        thresholds = np.array(
            [thresholds_at(self.quantiles, layer, path.nearest(sparsity)) for layer, path in enumerate(self.paths)]
        )
        source = {"text_sha256": self.quantiles.text_sha256, "tokens": self.quantiles.tokens}
        return SparsityPolicy("teal", sparsity, thresholds, self.quantiles.model, source)


def thresholds_at(quantiles: uniform.Calibration, layer: int, sparsities: np.ndarray) -> np.ndarray:
    """Thresholds f32 [4] of a block at a sparsity per site, linear between LEVELS; 0 where the sparsity is 0."""
    table = quantiles.quantiles[layer]
    found = [np.interp(s, uniform.LEVELS, row) if s > 0 else 0.0 for s, row in zip(sparsities, table, strict=True)]
    return np.array(found, np.float32)


def calibrate(llama: Llama, container: Container, text: str, tokens: Sequence[int]) -> TealCalibration:
    """Quantiles on all of `tokens` (of `text`, whose hash is kept), picks on a sample of them."""
    quantiles = uniform.calibrate(llama, container.fingerprint, text, tokens)
    x, paths = sample(container, tokens), []
    for layer in tqdm(range(container.config.num_hidden_layers), desc="TEAL", unit="block", leave=False, disable=None):
        block = Block.load(container, layer)
        paths.append(allocate(block, x, quantiles, layer))
        x = block.run(x, unmasked).output
    return TealCalibration(quantiles, paths)


def sample(container: Container, tokens: Sequence[int]) -> np.ndarray:
    """Embeddings f32 [windows, 64, hidden] of windows spread evenly over `tokens`."""
    length = min(WINDOW, len(tokens))
    starts = np.unique(np.linspace(0, len(tokens) - length, WINDOWS).astype(int))
    table = container.dequantize("model.embed_tokens")
    return np.stack([table[np.asarray(tokens[start : start + length])] for start in starts])


def allocate(block: Block, x: np.ndarray, quantiles: uniform.Calibration, layer: int) -> Path:
    """Greedy picks for a block with inputs x f32 [windows, tokens, hidden]: the cheapest step every time."""
    sizes = np.array([block.matrices[site].size for site in SITES], np.float64)
    steps = STEP * sizes.sum() / sizes
    dense = block.run(x, unmasked)
    sparsities, trace = np.zeros(len(SITES)), dense
    record = [(0.0, 0.0, sparsities)]
    while record[-1][0] < MOST and (sparsities < MOST).any():
        best = None
        for i in np.flatnonzero(sparsities < MOST):
            tried = sparsities.copy()
            tried[i] = min(tried[i] + steps[i], MOST)
            candidate = block.run(x, threshold_mask(thresholds_at(quantiles, layer, tried)), SITES[i], trace)
            error = float(np.square(candidate.output - dense.output, dtype=np.float64).sum())
            if best is None or error < best[0]:
                best = error, tried, candidate
        assert best is not None
        error, sparsities, trace = best
        record.append((float(sparsities @ sizes / sizes.sum()), error, sparsities))
    effective, errors, rows = zip(*record, strict=True)
    return Path(np.array(effective), np.array(errors), np.array(rows))


def threshold_mask(thresholds: np.ndarray) -> Mask:
    """The Mask of thresholds f32 [4]."""

    def mask(site: str, inputs: np.ndarray) -> np.ndarray:
        t = thresholds[SITES.index(site)]
        return np.where(np.abs(inputs) > t, inputs, np.float32(0)) if t > 0 else inputs

    return mask
