"""Which power of its column's norm an input counts with: the score |x_i| * ||W[:, i]||^alpha of WiSparse (arXiv
2602.14452). alpha = 0 is TEAL's score, 1 WINA's.

The grid and the loss are ours, as the paper's are not public: per site, the alpha whose mask loses least of the
(stacked) matrix's output at the level aimed at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.block import Block, Trace, relative_error
from spqt_ti.sparsity.scores import score, threshold_of_share

ALPHAS = tuple(round(0.1 * i, 1) for i in range(16))


@dataclass(frozen=True)
class Alphas:
    """The best alpha of every site of a block, f64 [4], and the losses f64 [4, len(ALPHAS)] that it was chosen by."""

    best: np.ndarray
    losses: np.ndarray


def column_weights(matrix: np.ndarray, alpha: float) -> np.ndarray | None:
    """c f32 [cols]: the L2 norms of the columns of f32 [rows, cols], to the power alpha; None for alpha = 0."""
    if alpha == 0:
        return None
    return (np.sqrt(np.square(matrix).sum(axis=0)) ** np.float32(alpha)).astype(np.float32)


def search(block: Block, dense: Trace, sparsity: float) -> Alphas:
    """Compare all ALPHAS at every site of a block, on the inputs of its dense run."""
    losses = np.array([site_losses(block.matrices[site], dense.inputs[site], sparsity) for site in SITES])
    return Alphas(np.array(ALPHAS)[losses.argmin(axis=1)], losses)


def site_losses(matrix: np.ndarray, inputs: np.ndarray, sparsity: float) -> np.ndarray:
    """Relative error of (X * mask) W^T for each of ALPHAS, f64 [len(ALPHAS)], where the mask leaves out the share
    `sparsity` of the scores.
    """
    x = inputs.reshape(-1, inputs.shape[-1])
    dense, losses = x @ matrix.T, []
    for alpha in ALPHAS:
        scores = score(x, column_weights(matrix, alpha))
        kept = np.where(scores > threshold_of_share(scores, sparsity), x, np.float32(0))
        losses.append(relative_error(kept @ matrix.T, dense))
    return np.array(losses)
