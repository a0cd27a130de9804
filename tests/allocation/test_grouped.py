"""ASAF, corrected: equal to trying everything, and the invariants of its specification."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from budget_problems import STEP, best_cost, cost, degradation, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.allocation.grouped import GroupSettings, allocate, costs_by_groups
from spqt_ti.allocation.problem import BudgetProblem
from spqt_ti.errors import AllocationError

LIMITS = st.integers(0, 30).map(lambda steps: steps * STEP)


def priced(problem: BudgetProblem, limit: float, choice: GroupSettings) -> float:
    """What is minimised; infinite where nothing keeps the limit."""
    try:
        found = allocate(problem, limit, choice)
    except AllocationError:
        return np.inf
    return found.cost + choice.price * float(problem.sizes.sum()) * len(found.groups)


@settings(max_examples=60)
@given(problems(), LIMITS, st.sampled_from([0.0, 0.01, 0.1]), st.sampled_from([None, 1, 2]))
def test_equals_brute_force(problem: BudgetProblem, limit: float, price: float, most: int | None) -> None:
    found = priced(problem, limit, GroupSettings(STEP, price, most))
    assert found == pytest.approx(best_cost(problem, limit, price, most), rel=1e-12)


@given(problems(), st.floats(0, 0.03), st.sampled_from([1e-4, 5e-4, STEP]))
def test_invariants(problem: BudgetProblem, limit: float, step: float) -> None:
    """Cover, order, bounds, the limit from the raw table, and the costs that are reported."""
    try:
        found = allocate(problem, limit, GroupSettings(step))
    except AllocationError:
        return
    groups = [(g.first, g.count, g.level) for g in found.groups]
    assert [i for first, count, _ in groups for i in range(first, first + count)] == list(range(len(problem.sizes)))
    assert all(rate in problem.rates for rate in found.rates)
    assert degradation(problem, groups) <= limit * (1 + 1e-12)
    assert found.degradation == pytest.approx(degradation(problem, groups), rel=1e-12)
    assert found.cost == pytest.approx(cost(problem, groups), rel=1e-12)


@given(problems(), st.floats(0, 0.03), st.floats(1, 2))
def test_cost_never_rises_with_the_limit(problem: BudgetProblem, limit: float, factor: float) -> None:
    choice = GroupSettings(5e-4)
    assert priced(problem, limit * factor, choice) <= priced(problem, limit, choice) * (1 + 1e-12)


@given(problems(), LIMITS)
def test_cost_never_rises_with_the_highest_rate(problem: BudgetProblem, limit: float) -> None:
    costs = [
        priced(problem.between(0, float(highest)), limit, GroupSettings(STEP, price=0.0)) for highest in problem.rates
    ]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(costs))


@given(problems(additive=True), LIMITS)
def test_more_groups_are_never_worse(problem: BudgetProblem, limit: float) -> None:
    """Defect (b) of the paper: without a price per group there are as many as layers."""
    costs = costs_by_groups(problem, limit, STEP)
    assert (np.diff(costs[np.isfinite(costs)]) <= 1e-9).all()


def test_a_price_bounds_the_number_of_groups() -> None:
    rng = np.random.default_rng(0)
    problem = BudgetProblem(np.linspace(0.01, 0.15, 15), np.ones(30), rng.uniform(0, 2e-4, (30, 15)).cumsum(axis=1))
    free = allocate(problem, 0.01, GroupSettings(price=0.0, step=1e-5))
    priced_ = allocate(problem, 0.01)
    assert len(priced_.groups) < len(free.groups)
    assert free.cost <= priced_.cost <= free.cost + 5e-4 * 30 * len(free.groups)


def test_infeasible_says_what_the_mildest_costs() -> None:
    problem = BudgetProblem(np.array([0.01, 0.05]), np.ones(3), np.full((3, 2), 0.02))
    with pytest.raises(AllocationError, match=r"0\.01 on keep the degradation within 0\.01: the mildest cost 0\.06"):
        allocate(problem, 0.01)


@pytest.mark.parametrize("limit", [-0.1, np.nan, np.inf])
def test_a_limit_is_a_number(limit: float) -> None:
    with pytest.raises(AllocationError, match="must be a number of 0 or more"):
        allocate(BudgetProblem(np.array([0.1]), np.ones(1), np.zeros((1, 1))), limit)


def test_rates_out_of_bounds() -> None:
    with pytest.raises(AllocationError, match=r"is between 0\.5 and 0\.6"):
        BudgetProblem(np.array([0.1, 0.2]), np.ones(1), np.zeros((1, 2))).between(0.5, 0.6)
