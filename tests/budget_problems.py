"""Random budget problems, and all allocations of one, to compare programmes with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from spqt_ti.allocation.problem import BudgetProblem

STEP = 2.0**-10  # whole multiples of it and their sums are exact in f64

Groups = list[tuple[int, int, int]]


@st.composite
def problems(draw: st.DrawFn, additive: bool | None = None, most_items: int = 6) -> BudgetProblem:
    """Up to six items and three rates; degradations are whole steps, in order of the rates or not."""
    items, levels = draw(st.integers(1, most_items)), draw(st.integers(1, 3))
    rates = np.array(sorted(draw(st.sets(st.integers(0, 20), min_size=levels, max_size=levels)))) / 20
    sizes = np.array(draw(st.lists(st.integers(1, 9), min_size=items, max_size=items)), float)
    of_items = draw(st.booleans()) if additive is None else additive
    shape = (items, levels) if of_items else (items, items, levels)
    count = int(np.prod(shape))
    steps = draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
    return BudgetProblem(rates, sizes, np.array(steps, float).reshape(shape) * STEP)


def all_groups(items: int, levels: int) -> Iterator[Groups]:
    """Every way to cut the items into groups, with every level for each."""
    for cuts in itertools.product((False, True), repeat=items - 1):
        starts = [0, *(i + 1 for i, cut in enumerate(cuts) if cut)]
        counts = np.diff([*starts, items]).tolist()
        for chosen in itertools.product(range(levels), repeat=len(starts)):
            yield list(zip(starts, counts, chosen, strict=True))


def degradation(problem: BudgetProblem, groups: Groups) -> float:
    """From the raw table, entry by entry."""
    table = problem.degradation
    if table.ndim == 3:
        return sum(float(table[i, n - 1, level]) for i, n, level in groups)
    return sum(float(table[i + k, level]) for i, n, level in groups for k in range(n))


def cost(problem: BudgetProblem, groups: Groups) -> float:
    """What remains, item by item."""
    return sum(float(problem.sizes[i + k]) * (1 - float(problem.rates[s])) for i, n, s in groups for k in range(n))


def best_cost(problem: BudgetProblem, limit: float, price: float = 0.0, most: int | None = None) -> float:
    """By trying everything: the least cost with `price` (a share of all sizes) per group; infinite where none keeps
    the limit.
    """
    each = price * float(problem.sizes.sum())
    found = [
        cost(problem, groups) + each * len(groups)
        for groups in all_groups(len(problem.sizes), len(problem.rates))
        if degradation(problem, groups) <= limit and len(groups) <= (most or len(groups))
    ]
    return min(found, default=np.inf)
