"""Where the search begins: what each place costs alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spqt_ti.sparsity.search.evolution import Levels
from spqt_ti.sparsity.search.sensitivity import at_budgets, measure

PLACES, LEVELS = 4, 3
MEASURED = (0.3, 0.5, 0.7)


class Toy:
    """Costs of its own for every place and level above 0; two parts of the data, one twice as dear."""

    parts = 2

    def __init__(self, seed: int) -> None:
        self.table = np.random.default_rng(seed).uniform(0, 3, (PLACES, LEVELS))
        self.asked: list[Levels] = []

    def costs(self, levels: Levels, parts: Sequence[int]) -> np.ndarray:
        self.asked.append(levels)
        cost = sum(self.table[i, level - 1] for i, level in enumerate(levels) if level)
        return cost * np.array([2 / 3, 4 / 3])[list(parts)]

    def settle(self, levels: Levels) -> None:
        assert levels == (0,) * PLACES


def test_each_place_is_measured_alone() -> None:
    toy = Toy(0)
    np.testing.assert_allclose(measure(toy, PLACES, LEVELS), toy.table)
    assert [sum(level > 0 for level in levels) for levels in toy.asked] == [1] * PLACES * LEVELS


@pytest.mark.parametrize("cut", [0, 2])
def test_goes_on_where_it_was(cut: int) -> None:
    toy, saved = Toy(3), []
    whole = measure(toy, PLACES, LEVELS, None, lambda costs: saved.append(costs.copy()))
    rest = Toy(3)
    np.testing.assert_array_equal(measure(rest, PLACES, LEVELS, saved[cut]), whole)
    assert rest.asked == toy.asked[LEVELS * (cut + 1) :]


@given(hnp.arrays(float, (PLACES, len(MEASURED)), elements=st.floats(1e-6, 10)))
def test_costs_at_measured_budgets_are_the_measured_ones(costs: np.ndarray) -> None:
    np.testing.assert_allclose(at_budgets(costs, MEASURED, np.array(MEASURED)), costs)


def test_costs_between_and_beyond_are_exponential() -> None:
    budgets = np.array([0.1, 0.2, 0.3, 0.35, 0.6, 0.7, 0.9])
    rates = np.array([[5.0], [11.0]])
    found = at_budgets(1e-3 * np.exp(rates * np.array(MEASURED)), MEASURED, budgets)
    np.testing.assert_allclose(found, 1e-3 * np.exp(rates * budgets))


def test_a_place_without_costs_stays_cheap() -> None:
    found = at_budgets(np.array([[0.0, 0.0, 0.0], [0.01, 0.1, 1.0]]), MEASURED, np.linspace(0, 0.9, 19))
    assert np.isfinite(found).all()
    assert found[0].max() < found[1].min()
