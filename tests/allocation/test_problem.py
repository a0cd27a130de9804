"""Budget problems: what is refused, what ranges hold, and rounding that never hides a degradation."""

from __future__ import annotations

import numpy as np
import pytest
from budget_problems import degradation, problems
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.allocation.problem import BudgetProblem, budget_steps, whole_steps
from spqt_ti.errors import AllocationError

RATES, SIZES = np.array([0.01, 0.05]), np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("rates", "sizes", "table", "message"),
    [
        (np.array([0.05, 0.01]), SIZES, np.zeros((3, 2)), "ascending"),
        (np.array([0.5, 1.5]), SIZES, np.zeros((3, 2)), "shares of 0 to 1"),
        (RATES, np.array([1.0, 0.0, 2.0]), np.zeros((3, 2)), "above 0"),
        (RATES, SIZES, np.zeros((2, 2)), r"shape \[2, 2\], expected \[3, 2\]"),
        (RATES, SIZES, np.full((3, 2), np.nan), "measure the missing"),
        (np.zeros(0), SIZES, np.zeros((3, 0)), "one rate or more"),
    ],
)
def test_refuses(rates: np.ndarray, sizes: np.ndarray, table: np.ndarray, message: str) -> None:
    with pytest.raises(AllocationError, match=message):
        BudgetProblem(rates, sizes, table)


@pytest.mark.parametrize("groups", [[(0, 2, 0)], [(0, 1, 0), (2, 1, 0)], [(0, 2, 0), (1, 2, 0)], [(0, 0, 0)], []])
def test_groups_that_do_not_cover_are_refused(groups: list[tuple[int, int, int]]) -> None:
    with pytest.raises(AllocationError, match="do not cover 3 items"):
        BudgetProblem(RATES, SIZES, np.zeros((3, 2))).allocation(groups)


def test_a_negative_degradation_counts_as_none() -> None:
    problem = BudgetProblem(RATES, SIZES, np.array([[-1.0, 0.5], [0.25, 0.5], [-2.0, 0.0]]))
    assert problem.allocation([(0, 3, 0)]).degradation == 0.25
    assert problem.of_levels((1, 1, 0)).groups[0].count == 2


@given(problems(additive=True))
def test_ranges_are_sums(problem: BudgetProblem) -> None:
    items = len(problem.sizes)
    for first in range(items):
        for count in range(1, items + 1):
            found = problem.ranges()[first, count - 1]
            if first + count > items:
                assert np.isinf(found).all()
                continue
            wanted = [degradation(problem, [(first, count, level)]) for level in range(len(problem.rates))]
            assert found.tolist() == wanted


@given(st.floats(0, 10), st.sampled_from([1e-4, 5e-3, 0.1, 2.0**-10]))
def test_whole_steps_are_the_least_that_are_enough(value: float, step: float) -> None:
    n = int(whole_steps(np.array([value]), step)[0])
    assert n * step >= value
    assert n == 0 or (n - 1) * step < value
    kept = budget_steps(value, step)
    assert kept * step <= value < (kept + 1) * step
