"""What every layer's sparsity costs alone: of budgets whose costs have the least sum (`allocation/`), the search for
budgets begins.

Alone, because one layer's part is lost in a model that is sparse everywhere: rounding flips inputs in all layers after
it. And one measurement serves every level. The search itself is on the whole model, where costs need not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spqt_ti.progress import progress
from spqt_ti.sparsity.search.evolution import Fitness, costs_of


def measure(
    fitness: Fitness,
    units: int,
    levels: int,
    known: np.ndarray | None = None,
    save: Callable[[np.ndarray], None] = lambda costs: None,
) -> np.ndarray:
    """Mean costs f64 [units, levels] with one unit at level 1, 2, .. `levels` and all others at 0.

    `known`: what an interrupted call gave `save`, NaN where nothing was measured yet.
    """
    costs = np.full((units, levels), np.nan) if known is None else known.copy()
    fitness.settle((0,) * units)
    missing = np.flatnonzero(np.isnan(costs).any(axis=1)).tolist()
    asked = [
        (tuple(level if other == unit else 0 for other in range(units)), range(fitness.parts))
        for unit in missing
        for level in range(1, levels + 1)
    ]
    found = costs_of(fitness, asked)
    for unit in progress(missing, desc="sensitivity", unit="layers"):
        costs[unit] = [next(found).mean() for _ in range(levels)]
        save(costs)
    return costs


def at_budgets(costs: np.ndarray, measured: Sequence[float], budgets: np.ndarray) -> np.ndarray:
    """Costs f64 [units, len(budgets)] from those `measured` at budgets in ascending order, f64 [units,
    len(measured)]: between them and beyond them the logarithm is linear, as costs grow about tenfold for every 0.2.
    """
    logs = np.log(np.maximum(costs, 1e-9))
    below = np.clip(np.searchsorted(measured, budgets, side="right") - 1, 0, len(measured) - 2)
    low, high = np.asarray(measured)[below], np.asarray(measured)[below + 1]
    return np.exp(logs[:, below] + (budgets - low) / (high - low) * (logs[:, below + 1] - logs[:, below]))
