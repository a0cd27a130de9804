"""ASAF as printed: it runs, it keeps its budget, and each of the six defects that `paper.py` lists."""

from __future__ import annotations

import numpy as np
import pytest
from budget_problems import STEP, degradation, problems
from hypothesis import given, settings

from spqt_ti.allocation import grouped, paper
from spqt_ti.allocation.problem import BudgetProblem
from spqt_ti.errors import AllocationError

RATES = np.array([0.01, 0.15])
# The first layer bears the high rate for nothing, the second only at a price.
UNEQUAL = BudgetProblem(RATES, np.ones(2), np.array([[0.001, 0.001], [0.001, 0.1]]))


@settings(max_examples=40)
@given(problems(most_items=4))
def test_what_it_finds_keeps_the_limit_and_is_never_better(problem: BudgetProblem) -> None:
    limit = 9 * STEP
    try:
        found = paper.allocate(problem, limit, STEP)
    except AllocationError:
        return
    assert degradation(problem, [(g.first, g.count, g.level) for g in found.groups]) <= limit
    free = grouped.allocate(problem, limit, grouped.GroupSettings(STEP, price=0.0))
    assert free.cost <= found.cost * (1 + 1e-12)


def test_a_one_group_always_wins() -> None:
    """Two groups are better by 7 % of everything."""
    assert len(paper.coarse(UNEQUAL, 0.01, 1e-3).intervals) == 1
    found, better = paper.allocate(UNEQUAL, 0.01, 1e-3), grouped.allocate(UNEQUAL, 0.01)
    assert found.rates == (0.01, 0.01)
    assert better.rates == (0.15, 0.01)


def test_b_only_the_number_of_layers_bounds_the_groups() -> None:
    """Three layers of falling strength: each further group lowers the cost, though one more saves next to nothing."""
    table = np.array([[0.001, 0.001], [0.001, 0.1], [0.001, 0.001]])
    costs = grouped.costs_by_groups(BudgetProblem(RATES, np.array([1.0, 1.0, 1e-6]), table), 0.01)
    assert costs[0] > costs[1] > costs[2] > costs[1] - 1e-6


def test_c_the_coarse_phase_promises_what_nothing_keeps() -> None:
    """Its cost is that of one layer at the highest rate, its degradation that of the mildest entry."""
    problem = BudgetProblem(RATES, np.ones(2), np.array([[0.004, 0.1], [0.02, 0.1]]))
    promise = paper.coarse(problem, 0.01)
    assert np.nanmin(promise.table[1:]) == pytest.approx(0.85)
    with pytest.raises(AllocationError, match="fine phase finds no 1 groups"):
        paper.fine(problem, promise.intervals, 0.01)


def test_d_a_budget_that_is_spent_exactly_is_refused() -> None:
    exact = BudgetProblem(RATES, np.ones(2), np.full((2, 2), 0.005))
    assert grouped.allocate(exact, 0.01, grouped.GroupSettings(0.005)).rates == (0.15, 0.15)
    with pytest.raises(AllocationError, match="fine phase"):
        paper.allocate(exact, 0.01)


def test_d_with_the_papers_step_most_problems_that_have_a_solution_get_none() -> None:
    """Random layers at the paper's own numbers: limit 1 %, steps of .5 %."""
    rng, feasible, lost = np.random.default_rng(0), 0, 0
    for _ in range(60):
        table = rng.uniform(0, 0.004, (5, 3)).cumsum(axis=1)
        problem = BudgetProblem(np.array([0.01, 0.08, 0.15]), np.ones(5), table)
        if table[:, 0].sum() > 0.01:
            continue
        feasible += 1
        try:
            paper.allocate(problem, 0.01)
        except AllocationError:
            lost += 1
        grouped.allocate(problem, 0.01, grouped.GroupSettings(1e-5))
    assert feasible > 20
    assert lost > feasible / 2


def test_e_intervals_go_to_the_groups_in_reverse() -> None:
    """The first interval allows the high rate, meant for the first layer, which bears it."""
    with pytest.raises(AllocationError, match="fine phase"):
        paper.fine(UNEQUAL, ((1, 1), (0, 0)), 0.01, 1e-3)
    assert paper.fine(UNEQUAL, ((0, 0), (1, 1)), 0.01, 1e-3).rates == (0.15, 0.01)


def test_f_an_entry_is_of_a_budget_spent_exactly() -> None:
    """One step is enough, so two are, but the table says that they are not."""
    table = paper.coarse(BudgetProblem(RATES[:1], np.ones(1), np.array([[0.004]])), 0.01).table
    assert np.isfinite(table[1]).tolist() == [False, True, False]


def test_no_interval_at_all() -> None:
    with pytest.raises(AllocationError, match="coarse phase finds no interval"):
        paper.allocate(BudgetProblem(RATES, np.ones(2), np.full((2, 2), 0.5)), 0.01)
