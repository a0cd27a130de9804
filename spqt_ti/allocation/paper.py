"""ASAF's algorithms 1 and 2 as printed (`paper` mode), to be compared with `grouped.py`, which is what to use.

H is what remains of a range's size at a rate, Xi its degradation. Where the print leaves a choice, it is the one that
lets the algorithm run: indices are whole, so degradations are rounded up (as the text has it, not the listing), and
minima over "interval" are over all entries of a table at the interval's rates, as the listing names no range.

What is wrong with it, each shown by a case in tests/allocation/test_paper.py:

a. The coarse phase knows no layers, so every further group only adds cost: one group always wins.
b. Layers count in the fine phase only, and there more groups are never worse: nothing in the objective bounds them.
c. The coarse phase takes the cost of an interval's highest rate and the degradation of its mildest: what it promises,
   no allocation keeps, and the fine phase can find none.
d. Text and listing differ (rounding up or not, >= or >). With > a budget that is spent exactly is refused.
e. The fine phase numbers groups by how many remain, so intervals go to the groups in reverse.
f. The coarse phase starts at a budget of 0 only, so an entry is of a budget spent exactly, not of one kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.allocation.grouped import check_limit
from spqt_ti.allocation.problem import Allocation, BudgetProblem, F64Array, whole_steps
from spqt_ti.errors import AllocationError

STEP = 5e-3  # the paper's Delta

Interval = tuple[int, int]  # lowest and highest level


@dataclass(frozen=True)
class Coarse:
    """What algorithm 1 returns: an interval per group; and its table f64 [groups + 1, budget + 1] of costs."""

    intervals: tuple[Interval, ...]
    table: F64Array


def allocate(problem: BudgetProblem, limit: float, step: float = STEP) -> Allocation:
    """Both phases. Raises AllocationError where either finds nothing, and says which."""
    return fine(problem, coarse(problem, limit, step).intervals, limit, step)


def coarse(problem: BudgetProblem, limit: float, step: float = STEP) -> Coarse:
    """Algorithm 1: number of groups, and an interval of rates for each."""
    budget, items = check_limit(limit, step), len(problem.sizes)
    costs, steps = problem.costs(), whole_steps(problem.ranges(), step)
    levels = range(len(problem.rates))
    intervals = [(low, high) for low in levels for high in levels if low <= high]
    table = np.full((items + 1, budget + 1), np.inf)
    table[0, 0] = 0.0
    choice = np.full(table.shape, -1, np.int64)
    for g in range(1, items + 1):
        for b in range(budget + 1):
            for number, (low, high) in enumerate(intervals):
                spent = int(steps[..., low : high + 1].min())
                if b - spent >= 0:
                    total = float(costs[..., low : high + 1].min()) + table[g - 1, b - spent]
                    if total < table[g, b]:
                        table[g, b], choice[g, b] = total, number
    if not np.isfinite(table[1:]).any():
        raise AllocationError(
            f"paper mode: the coarse phase finds no interval whose mildest degradation is within {limit:g}; "
            "mode corrected says what the mildest allocation costs"
        )
    groups = 1 + int(np.argmin(table[1:].min(axis=1)))
    b, found = int(np.argmin(table[groups])), []
    for g in range(groups, 0, -1):
        found.append(intervals[choice[g, b]])
        b -= int(steps[..., found[-1][0] : found[-1][1] + 1].min())
    return Coarse(tuple(reversed(found)), table)


def fine(problem: BudgetProblem, intervals: tuple[Interval, ...], limit: float, step: float = STEP) -> Allocation:
    """Algorithm 2: which layers each group has, and its rate within its interval."""
    budget, items, groups = check_limit(limit, step), len(problem.sizes), len(intervals)
    costs, steps = problem.costs(), whole_steps(problem.ranges(), step)
    least = np.full((items + 1, groups + 1, budget + 1), np.inf)
    least[items, 0] = 0.0
    choice: npt.NDArray[np.int64] = np.full((*least.shape, 2), -1, np.int64)
    for i in range(items - 1, -1, -1):
        for g in range(1, min(groups, items - i) + 1):
            low, high = intervals[g - 1]
            for b in range(budget + 1):
                for count in range(1, items - g - i + 2):
                    for level in range(low, high + 1):
                        left = b - int(steps[i, count - 1, level])
                        if left > 0:
                            total = costs[i, count - 1, level] + least[i + count, g - 1, left]
                            if total < least[i, g, b]:
                                least[i, g, b], choice[i, g, b] = total, (count, level)
    if not np.isfinite(least[0, groups, budget]):
        raise AllocationError(
            f"paper mode: the fine phase finds no {groups} groups within the coarse phase's intervals whose "
            f"degradation leaves anything of {limit:g} in steps of {step:g}; use mode corrected, or a finer step"
        )
    found, i, b = [], 0, budget
    for g in range(groups, 0, -1):
        count, level = (int(v) for v in choice[i, g, b])
        found.append((i, count, level))
        b -= int(steps[i, count - 1, level])
        i += count
    return problem.allocation(found)
