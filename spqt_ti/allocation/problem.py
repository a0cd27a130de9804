"""A budget problem: a row of items, each to lose a share of itself, what that saves and what it costs in quality.

Items are a model's layers or sites in order. Static pruning and dynamic sparsity, ASAF, TEAL's greedy and the
programme of the least sum (`allocators.py`) all take this one description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import AllocationError

F64Array = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # of rates


@dataclass(frozen=True)
class Group:
    """`count` consecutive items from `first` on that lose the share `rate`, number `level` among a problem's rates."""

    first: int
    count: int
    level: int
    rate: float


@dataclass(frozen=True)
class Allocation:
    """Groups that cover all items in order; what remains of the sizes (`cost`), and the `degradation`, both summed up
    from the problem's own tables.
    """

    groups: tuple[Group, ...]
    cost: float
    degradation: float

    @property
    def levels(self) -> tuple[int, ...]:
        """The level of every item."""
        return tuple(group.level for group in self.groups for _ in range(group.count))

    @property
    def rates(self) -> tuple[float, ...]:
        """The rate of every item."""
        return tuple(group.rate for group in self.groups for _ in range(group.count))


@dataclass(frozen=True)
class BudgetProblem:
    """Items of `sizes` f64 [items] (FLOPs, weights or bytes: what a whole one costs), which may lose `rates` f64
    [levels], ascending shares of 0 to 1.

    `degradation`: f64 [items, levels] where the losses of items add up, or f64 [items, items, levels] with entry
    [first, count - 1] for `count` consecutive items at one rate (entries past the last item are not read).
    A measured loss below 0 is noise, and counts as 0 in every sum. Raises AllocationError for anything else.
    """

    rates: F64Array
    sizes: F64Array
    degradation: F64Array

    def __post_init__(self) -> None:
        items, levels = len(self.sizes), len(self.rates)
        if not items or not levels:
            raise AllocationError("a budget problem needs one item and one rate or more")
        if not (np.isfinite(self.rates).all() and (np.diff(self.rates) > 0).all()):
            raise AllocationError("rates must be numbers in ascending order, none of them twice")
        if self.rates[0] < -_ROUNDING or self.rates[-1] > 1 + _ROUNDING:
            raise AllocationError(f"rates must be shares of 0 to 1, not {self.rates[0]:g} to {self.rates[-1]:g}")
        if not (np.isfinite(self.sizes).all() and (self.sizes > 0).all()):
            raise AllocationError("sizes must be numbers above 0")
        if self.degradation.shape not in ((items, levels), (items, items, levels)):
            raise AllocationError(
                f"degradation has shape {list(self.degradation.shape)}, expected [{items}, {levels}] per item "
                f"or [{items}, {items}, {levels}] per range of items"
            )
        if not np.isfinite(self.ranges()[_within(items)]).all():
            raise AllocationError("degradations must be finite numbers: measure the missing ones first")

    @property
    def additive(self) -> bool:
        """Whether degradations are those of single items, and add up."""
        return self.degradation.ndim == 2

    def between(self, lowest: float, highest: float) -> BudgetProblem:
        """The same with the rates from `lowest` to `highest` only. AllocationError where there is none."""
        kept = (self.rates >= lowest - _ROUNDING) & (self.rates <= highest + _ROUNDING)
        if not kept.any():
            raise AllocationError(
                f"none of the rates {self.rates[0]:g} to {self.rates[-1]:g} is between {lowest:g} and {highest:g}"
            )
        return BudgetProblem(self.rates[kept], self.sizes, self.degradation[..., kept])

    def ranges(self) -> F64Array:
        """Degradation f64 [items, items, levels], of 0 or more, of the range [first, count - 1] at each rate; infinite
        past the last item.
        """
        items = len(self.sizes)
        if not self.additive:
            found = np.maximum(self.degradation, 0.0)
        else:
            each = np.maximum(self.degradation, 0.0)
            found = np.zeros((items, items, len(self.rates)))
            for first in range(items):
                found[first, : items - first] = np.cumsum(each[first:], axis=0)
        found[~_within(items)] = np.inf
        return found

    def costs(self) -> F64Array:
        """What remains f64 [items, items, levels] of the range [first, count - 1] at each rate; infinite past the last
        item.
        """
        items = len(self.sizes)
        found = np.full((items, items, len(self.rates)), np.inf)
        for first in range(items):
            found[first, : items - first] = np.cumsum(self.sizes[first:])[:, None] * (1 - self.rates)
        return found

    def allocation(self, groups: Sequence[tuple[int, int, int]]) -> Allocation:
        """The allocation of groups (first, count, level), summed up from the tables. AllocationError unless they cover
        the items in order, each once.
        """
        ends = [0, *(first + count for first, count, _ in groups)]
        starts = [*(first for first, _, _ in groups), len(self.sizes)]
        if ends != starts or any(count < 1 for _, count, _ in groups):
            raise AllocationError(f"groups {list(groups)} do not cover {len(self.sizes)} items in order")
        made = tuple(Group(i, n, level, float(self.rates[level])) for i, n, level in groups)
        cost = sum(float(self.sizes[g.first : g.first + g.count].sum()) * (1 - g.rate) for g in made)
        ranges = self.ranges()
        degradation = sum(float(ranges[g.first, g.count - 1, g.level]) for g in made)
        return Allocation(made, cost, degradation)

    def of_levels(self, levels: Sequence[int]) -> Allocation:
        """The allocation with a level for every item; neighbours of one level are a group."""
        starts = [i for i in range(len(levels)) if i == 0 or levels[i] != levels[i - 1]]
        ends = [*starts[1:], len(levels)]
        return self.allocation([(i, end - i, int(levels[i])) for i, end in zip(starts, ends, strict=True)])


def _within(items: int) -> npt.NDArray[np.bool_]:
    """[items, items]: whether the range [first, count - 1] ends with the last item or before."""
    return np.add.outer(np.arange(items), np.arange(items)) < items


def whole_steps(degradation: F64Array, step: float) -> npt.NDArray[np.int64]:
    """The least whole numbers n with n * step >= degradation, in f64 arithmetic: a sum of n * step is never below the
    sum of what it stands for. Infinite ones become a number that no budget reaches.
    """
    finite = np.isfinite(degradation)
    steps = np.ceil(np.where(finite, degradation, 0.0) / step).astype(np.int64)
    values = np.where(finite, degradation, 0.0)
    steps = np.where((steps > 0) & ((steps - 1) * step >= values), steps - 1, steps)
    steps = np.where(steps * step < values, steps + 1, steps)
    return np.where(finite, steps, np.iinfo(np.int64).max // 4)


def budget_steps(limit: float, step: float) -> int:
    """The largest whole number n with n * step <= limit."""
    steps = int(np.floor(limit / step))
    return steps + 1 if (steps + 1) * step <= limit else steps - (steps * step > limit)
