"""The two small matrices of a predictor: gate, truncated where that changes its outputs on a text least.

Whitening (section 3 of arXiv 2603.14110): with X^T X = S S^T over the text's inputs X, the singular values of gate S
that are dropped are the error of gate's outputs on X.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JITTER = 1e-10  # of the mean diagonal, where X^T X is not positive definite; ten times more until it is
STORED = np.float16  # of both matrices


@dataclass(frozen=True)
class Factors:
    """gate is about fc2 fc1: f64 [rank, hidden] and [intermediate, rank]. `sigma`: all singular values of gate S, f64
    [hidden], falling; `jitter`: what was added to the diagonal of X^T X, as a share of its mean.
    """

    fc1: np.ndarray
    fc2: np.ndarray
    sigma: np.ndarray
    jitter: float

    def error(self) -> float:
        """||(gate - fc2 fc1) X^T||, Frobenius."""
        return float(np.sqrt(np.square(self.sigma[len(self.fc1) :]).sum()))

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        """Both matrices as they are kept: f32 values that f16 holds."""
        fc1, fc2 = (a.astype(STORED).astype(np.float32) for a in (self.fc1, self.fc2))
        return fc1, fc2


def cholesky(gram: np.ndarray) -> tuple[np.ndarray, float]:
    """Lower S with S S^T = gram (f64 [hidden, hidden]), and the jitter that it took, 0 where it took none."""
    mean = float(np.trace(gram)) / len(gram)
    jitter = 0.0
    while True:
        try:
            return np.linalg.cholesky(gram + jitter * mean * np.eye(len(gram)) if jitter else gram), jitter
        except np.linalg.LinAlgError:
            jitter = jitter * 10 or JITTER


def factorise(gate: np.ndarray, gram: np.ndarray | None, rank: int) -> Factors:
    """Truncate gate [intermediate, hidden] to `rank`; `gram`: X^T X, f64 [hidden, hidden], or None for S = I.

    Computed from the eigenvectors of (gate S)^T (gate S), so nothing but gate is larger than hidden x hidden.
    Raises ValueError for a rank outside 1 to hidden.
    """
    hidden = gate.shape[1]
    if not 1 <= rank <= hidden:
        raise ValueError(f"rank {rank}, expected 1 to {hidden}")
    wide = gate.astype(np.float64)
    root, jitter = (np.eye(hidden), 0.0) if gram is None else cholesky(gram)
    whitened = wide @ root
    values, vectors = np.linalg.eigh(whitened.T @ whitened)
    falling = np.argsort(values)[::-1]
    sigma, right = np.sqrt(np.maximum(values[falling], 0)), vectors[:, falling[:rank]]
    fc2 = whitened @ right
    fc1 = right.T if gram is None else np.linalg.solve(root.T, right).T
    return Factors(*_balanced(fc1, fc2), sigma, jitter)


def _balanced(fc1: np.ndarray, fc2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product, with values of one size in a row of fc1 and its column of fc2: neither leaves f16's range."""
    rows = np.sqrt(np.square(fc1).mean(axis=1))
    columns = np.sqrt(np.square(fc2).mean(axis=0))
    factor = np.sqrt(np.divide(columns, rows, out=np.ones_like(rows), where=(rows > 0) & (columns > 0)))
    return fc1 * factor[:, None], fc2 / factor
