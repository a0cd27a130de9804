"""Degradation tables: every layer alone at every amount, or every range of layers, as one sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spqt_ti.parallel.executors import Executor
from spqt_ti.parallel.study import Request
from spqt_ti.parallel.sweep import sweep

MEASURES = ("kl", "perplexity")


def measure(
    executor: Executor, request: Request, layers: int, amounts: Sequence[float], exact: bool, kept: Path | None
) -> np.ndarray:
    """f64 [layers, amounts, 2] of each layer alone, or `exact`ly f64 [layers, layers, amounts, 2] of every range
    [first, count - 1] (zeros past the last layer), of what the request's study gives.
    """
    ranges = [(first, count) for first in range(layers) for count in range(1, layers - first + 1 if exact else 2)]
    items = [[[first, count, amount]] for first, count in ranges for amount in amounts]
    results = iter(sweep(executor, request, items, kept, "sensitivity"))
    table = np.zeros((layers, layers if exact else 1, len(amounts), 2))
    for first, count in ranges:
        for level in range(len(amounts)):
            table[first, count - 1, level] = next(results)
    return table if exact else table[:, 0]


def degradations(table: np.ndarray, measure: str) -> np.ndarray:
    """Relative increase of the perplexity f64 [...], of a table [..., 2]: exp(x) - 1, where x is the rise of the
    negative log-likelihood, or the KL, which is what that rise would be on the dense model's own text.

    The KL is never negative and has a tenth of the other's error.
    """
    column: Callable[[np.ndarray], np.ndarray] = np.expm1
    return column(table[..., MEASURES.index(measure)])
