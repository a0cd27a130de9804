"""Ways to share a budget out, by name: all take a budget problem and what its solution has to keep.

`uniform` gives every item the same rate; `greedy` gives one level after the other to the item where it adds least for
what it saves (TEAL's algorithm 1, on a table); `least-sum` is exact, an item at a time; `asaf` is exact for groups of
neighbours; `paper` is ASAF as printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.allocation import grouped, paper
from spqt_ti.allocation.grouped import GroupSettings, infeasible
from spqt_ti.allocation.least_sum import cheapest
from spqt_ti.allocation.problem import Allocation, BudgetProblem
from spqt_ti.errors import AllocationError

__all__ = ["ALLOCATORS", "Allocator", "KeepWithin", "ReachRate", "allocate"]

_ROUNDING = 1e-12  # of sums in f64


@dataclass(frozen=True)
class KeepWithin:
    """Save as much as can be with a degradation of at most `limit`; `settings` are of the modes that group or round."""

    limit: float
    settings: GroupSettings = field(default_factory=GroupSettings)


@dataclass(frozen=True)
class ReachRate:
    """Degrade as little as can be with levels whose mean is that of `level` everywhere (items of one size)."""

    level: int


Constraint = KeepWithin | ReachRate
Allocator = Callable[[BudgetProblem, Constraint], Allocation]


def allocate(name: str, problem: BudgetProblem, constraint: Constraint) -> Allocation:
    """By the allocator `name`. AllocationError for an unknown one, and where nothing keeps the constraint."""
    if name not in ALLOCATORS:
        raise AllocationError(f"unknown allocator {name!r}; there are: {', '.join(ALLOCATORS)}")
    if isinstance(constraint, ReachRate):
        if not 0 <= constraint.level < len(problem.rates):
            raise AllocationError(f"level {constraint.level} is none of {len(problem.rates)} rates")
        if not np.allclose(problem.sizes, problem.sizes[0]):
            raise AllocationError("a mean of levels means nothing for items of different sizes; give a limit instead")
    return ALLOCATORS[name](problem, constraint)


def _uniform(problem: BudgetProblem, constraint: Constraint) -> Allocation:
    items = len(problem.sizes)
    if isinstance(constraint, ReachRate):
        return problem.allocation([(0, items, constraint.level)])
    kept = np.flatnonzero(problem.ranges()[0, -1] <= constraint.limit * (1 + _ROUNDING))
    if not kept.size:
        raise infeasible(problem, constraint.limit)
    return problem.allocation([(0, items, int(kept[-1]))])


def _greedy(problem: BudgetProblem, constraint: Constraint) -> Allocation:
    each, items = _of_single_items(problem), len(problem.sizes)
    levels = np.zeros(items, np.int64)
    spent = float(each[:, 0].sum())
    if isinstance(constraint, KeepWithin) and spent > constraint.limit * (1 + _ROUNDING):
        raise infeasible(problem, constraint.limit)
    while True:
        price = np.full(items, np.inf)
        for i in np.flatnonzero(levels < len(problem.rates) - 1).tolist():
            added = each[i, levels[i] + 1] - each[i, levels[i]]
            saved = problem.sizes[i] * (problem.rates[levels[i] + 1] - problem.rates[levels[i]])
            price[i] = added / saved
            if isinstance(constraint, KeepWithin) and spent + added > constraint.limit * (1 + _ROUNDING):
                price[i] = np.inf
        full = isinstance(constraint, ReachRate) and levels.sum() == constraint.level * items
        if full or not np.isfinite(price).any():
            return problem.of_levels(levels.tolist())
        i = int(np.argmin(price))
        spent += float(each[i, levels[i] + 1] - each[i, levels[i]])
        levels[i] += 1


def _least_sum(problem: BudgetProblem, constraint: Constraint) -> Allocation:
    if isinstance(constraint, ReachRate):
        return problem.of_levels(cheapest(_of_single_items(problem), constraint.level * len(problem.sizes)))
    alone = GroupSettings(constraint.settings.step, price=0.0)
    single = BudgetProblem(problem.rates, problem.sizes, _of_single_items(problem))
    return problem.of_levels(grouped.allocate(single, constraint.limit, alone).levels)


def _asaf(problem: BudgetProblem, constraint: Constraint) -> Allocation:
    if isinstance(constraint, ReachRate):
        raise AllocationError("asaf saves what it can within a limit of degradation; it takes no mean rate")
    return grouped.allocate(problem, constraint.limit, constraint.settings)


def _paper(problem: BudgetProblem, constraint: Constraint) -> Allocation:
    if isinstance(constraint, ReachRate):
        raise AllocationError("ASAF saves what it can within a limit of degradation; it takes no mean rate")
    return paper.allocate(problem, constraint.limit)


def _of_single_items(problem: BudgetProblem) -> np.ndarray:
    """Degradation f64 [items, levels] of each item alone."""
    return problem.ranges()[:, 0]


ALLOCATORS: dict[str, Allocator] = {
    "asaf": _asaf,
    "paper": _paper,
    "uniform": _uniform,
    "greedy": _greedy,
    "least-sum": _least_sum,
}
