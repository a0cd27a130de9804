"""All allocators on one footing: what each keeps, and which can be better than which."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from budget_problems import STEP, problems
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spqt_ti.allocation.allocators import ALLOCATORS, KeepWithin, ReachRate, allocate
from spqt_ti.allocation.grouped import GroupSettings
from spqt_ti.allocation.least_sum import cheapest
from spqt_ti.allocation.problem import BudgetProblem
from spqt_ti.errors import AllocationError

CONVEX = BudgetProblem(
    np.array([0.0, 0.1, 0.2, 0.3]), np.ones(4), np.outer([1, 2, 4, 8], [0, 1, 3, 7]).astype(float) * STEP
)


@given(problems(additive=True), st.integers(0, 30).map(lambda steps: steps * STEP))
def test_within_a_limit(problem: BudgetProblem, limit: float) -> None:
    costs = {}
    for name in ("uniform", "greedy", "least-sum", "asaf"):
        try:
            found = allocate(name, problem, KeepWithin(limit, GroupSettings(STEP, price=0.0)))
        except AllocationError:
            continue
        assert found.degradation <= limit * (1 + 1e-9)
        costs[name] = found.cost
    for name, cost in costs.items():
        assert costs["least-sum"] <= cost * (1 + 1e-12), name
    assert costs.get("asaf", 0) == pytest.approx(costs.get("least-sum", 0), rel=1e-12)


@pytest.mark.parametrize("level", range(4))
def test_at_a_rate(level: int) -> None:
    found = {name: allocate(name, CONVEX, ReachRate(level)) for name in ("uniform", "greedy", "least-sum")}
    assert all(np.mean(f.levels) == level for f in found.values())
    assert found["uniform"].levels == (level,) * 4
    # Where every item's losses are convex, step by step is exact.
    assert found["greedy"].degradation == found["least-sum"].degradation <= found["uniform"].degradation


@given(hnp.arrays(float, (4, 3), elements=st.floats(0, 9)), st.integers(0, 8))
def test_least_sum_equals_brute_force(costs: np.ndarray, total: int) -> None:
    found = cheapest(costs, total)
    sums = [costs[range(4), t].sum() for t in itertools.product(range(3), repeat=4) if sum(t) == total]
    assert sum(found) == total
    assert costs[range(4), found].sum() == pytest.approx(min(sums))


def test_a_sum_that_no_levels_have() -> None:
    with pytest.raises(ValueError, match="add up to 9"):
        cheapest(np.zeros((4, 3)), 9)


@pytest.mark.parametrize(
    ("name", "constraint", "message"),
    [
        ("best", ReachRate(0), "unknown allocator 'best'; there are: asaf, paper, uniform"),
        ("uniform", ReachRate(4), "level 4 is none of 4 rates"),
        ("asaf", ReachRate(1), "takes no mean rate"),
        ("uniform", KeepWithin(-1), "no rates"),
    ],
)
def test_refuses(name: str, constraint: KeepWithin | ReachRate, message: str) -> None:
    with pytest.raises(AllocationError, match=message):
        allocate(name, CONVEX, constraint)


def test_every_allocator_says_so_where_nothing_keeps_the_limit() -> None:
    hopeless = BudgetProblem(np.array([0.01, 0.1]), np.ones(3), np.full((3, 2), 0.5))
    for name in ALLOCATORS:
        with pytest.raises(AllocationError):
            allocate(name, hopeless, KeepWithin(0.01))


def test_a_mean_of_levels_needs_items_of_one_size() -> None:
    with pytest.raises(AllocationError, match="different sizes"):
        allocate("uniform", BudgetProblem(np.array([0.1]), np.array([1.0, 2.0]), np.zeros((2, 1))), ReachRate(0))
