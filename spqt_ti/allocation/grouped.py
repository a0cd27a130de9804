"""ASAF's problem solved exactly: groups of consecutive items with one rate each, of the least cost whose degradations
keep within a limit.

The corrected mode of the paper (its algorithms 1 and 2 as printed are in `paper.py`, with what is wrong with them).
One dynamic programme over (groups, items covered, budget spent) takes the place of both phases. The coarse phase only
saves time, which is a second here, and a search that it narrows need no longer be the best one, nor get better with a
larger limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.allocation.problem import Allocation, BudgetProblem, F64Array, budget_steps, whole_steps
from spqt_ti.errors import AllocationError

STEP = 2e-5  # of degradation: the unit of the budget
PRICE = 5e-4  # of the whole cost, per group: without one, as many groups as items are never worse


@dataclass(frozen=True)
class GroupSettings:
    """`step`: what degradations are rounded up to. `price`: what a group must save, as a share of the whole cost.
    `most`: groups (None: as many as items).
    """

    step: float = STEP
    price: float = PRICE
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.step > 0 or not self.price >= 0 or (self.most is not None and self.most < 1):
            raise AllocationError(
                f"a step above 0, a price of 0 or more and one group or more are needed, not {self.step:g}, "
                f"{self.price:g} and {self.most}"
            )


def allocate(problem: BudgetProblem, limit: float, settings: GroupSettings | None = None) -> Allocation:
    """The groups of the least cost (with the price of each) whose degradation is at most `limit`: exact where
    degradations are whole steps, and never over the limit.

    Raises AllocationError where even the mildest rates degrade more.
    """
    settings = settings or GroupSettings()
    budget = _useful(problem, check_limit(limit, settings.step), settings.step)
    table = _Table.fill(problem, budget, settings)
    price = settings.price * float(problem.sizes.sum())
    totals = table.least[:, -1, budget] + price * np.arange(len(table.least))
    groups = int(np.argmin(totals))
    if not np.isfinite(totals[groups]):
        raise infeasible(problem, limit)
    return problem.allocation(table.trace(groups, budget))


def costs_by_groups(problem: BudgetProblem, limit: float, step: float = STEP) -> F64Array:
    """Least cost f64 [items] with exactly 1, 2, .. groups; infinite where there is none."""
    budget = _useful(problem, check_limit(limit, step), step)
    return _Table.fill(problem, budget, GroupSettings(step)).least[1:, -1, budget]


def check_limit(limit: float, step: float) -> int:
    """Whole steps in the limit. AllocationError for a limit that is no number of 0 or more."""
    if not (np.isfinite(limit) and limit >= 0):
        raise AllocationError(f"the limit of degradation must be a number of 0 or more, not {limit}")
    return budget_steps(limit, step)


def _useful(problem: BudgetProblem, budget: int, step: float) -> int:
    """`budget`, or what all items together can spend at most: more would only be memory."""
    steps = whole_steps(problem.ranges(), step)
    return min(budget, int(steps[np.isfinite(problem.ranges())].max()) * len(problem.sizes))


def infeasible(problem: BudgetProblem, limit: float) -> AllocationError:
    """The error where nothing keeps within the limit: it names the mildest allocation."""
    mildest = problem.ranges()[0, -1].min() if not problem.additive else problem.ranges()[:, 0].min(axis=1).sum()
    return AllocationError(
        f"no rates from {problem.rates[0]:g} on keep the degradation within {limit:g}: the mildest cost "
        f"{float(mildest):.4g} (before rounding to steps); allow more, or begin with a lower rate"
    )


@dataclass(frozen=True)
class _Table:
    """`least` f64 [groups + 1, items + 1, budget + 1]: cost of the first items in exactly so many groups, with at most
    so many steps spent. `choice` i64 of the same shape: first item * levels + level of the last group.
    """

    least: F64Array
    choice: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]

    @classmethod
    def fill(cls, problem: BudgetProblem, budget: int, settings: GroupSettings) -> _Table:
        items, levels = len(problem.sizes), len(problem.rates)
        most = min(items, settings.most or items)
        steps, costs = whole_steps(problem.ranges(), settings.step), problem.costs()
        least = np.full((most + 1, items + 1, budget + 1), np.inf)
        least[0, 0] = 0.0
        choice = np.full(least.shape, -1, np.int64)
        for end in range(1, items + 1):
            for first in range(end):
                spent, cost = steps[first, end - first - 1], costs[first, end - first - 1]
                for level in _worth_trying(spent, cost, budget):
                    tried = least[:-1, first, : budget + 1 - spent[level]] + cost[level]
                    now = least[1:, end, spent[level] :]
                    better = tried < now
                    now[better] = tried[better]
                    choice[1:, end, spent[level] :][better] = first * levels + level
        return cls(least, choice, steps)

    def trace(self, groups: int, budget: int) -> list[tuple[int, int, int]]:
        """(first, count, level) of the groups of the best solution."""
        levels, end, found = self.steps.shape[2], self.least.shape[1] - 1, []
        for group in range(groups, 0, -1):
            first, level = divmod(int(self.choice[group, end, budget]), levels)
            found.append((first, end - first, level))
            budget -= int(self.steps[first, end - first - 1, level])
            end = first
        return found[::-1]


def _worth_trying(spent: npt.NDArray[np.int64], cost: F64Array, budget: int) -> list[int]:
    """Levels that no other beats in both steps and cost, and that the budget allows."""
    found: list[int] = []
    for level in np.lexsort((cost, spent)).tolist():
        if spent[level] <= budget and (not found or cost[level] < cost[found[-1]]):
            found.append(level)
    return found
