"""Where the search begins: down the slope, within bounds and on budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.sparsity.evolution import Levels
from spqt_ti.sparsity.sensitivity import REACH, measure, moves

LOWEST, HIGHEST, START = -5, 4, (0, 1, -1, 0)


class Parabolas:
    """Cost of a place: slope * level + bend * level^2; two parts of the data, one twice as dear."""

    parts = 2

    def __init__(self, slopes: np.ndarray, bends: np.ndarray) -> None:
        self.slopes, self.bends = slopes, bends
        self.asked: list[Levels] = []

    def cost(self, levels: Levels) -> float:
        at = np.array(levels)
        return float((self.slopes * at + self.bends * at**2).sum())

    def costs(self, levels: Levels, parts: Sequence[int]) -> np.ndarray:
        self.asked.append(levels)
        return self.cost(levels) * np.array([2 / 3, 4 / 3])[list(parts)]

    def settle(self, levels: Levels) -> None:
        assert levels == START


def toy(seed: int) -> Parabolas:
    generator = np.random.default_rng(seed)
    return Parabolas(generator.uniform(0, 3, len(START)), generator.uniform(0.05, 0.5, len(START)))


@settings(max_examples=50)
@given(st.lists(st.floats(0, 10), min_size=8, max_size=8))
def test_budgets_are_kept_whatever_was_measured(costs: list[float]) -> None:
    for levels in moves(np.array(costs).reshape(4, 2), START, LOWEST, HIGHEST):
        assert sum(levels) == sum(START)
        assert all(LOWEST <= level <= HIGHEST for level in levels)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_go_down_the_slope(seed: int) -> None:
    """Each longer than the one before, and with costs that are lines each better, too."""
    fitness = toy(seed)
    fitness.bends[:] = 0
    found = moves(measure(fitness, START, LOWEST, HIGHEST), START, LOWEST, HIGHEST)
    assert found
    sizes = [max(abs(a - b) for a, b in zip(levels, START, strict=True)) for levels in found]
    assert sizes == sorted(sizes)
    assert fitness.cost(found[-1]) < fitness.cost(START)
    dearest, cheapest = int(fitness.slopes.argmax()), int(fitness.slopes.argmin())
    assert found[-1][dearest] <= START[dearest]
    assert found[-1][cheapest] >= START[cheapest]


def test_equal_slopes_go_nowhere() -> None:
    assert moves(np.tile([1.0, 2.0], (4, 1)), (0, 0, 0, 0), LOWEST, HIGHEST) == []


def test_each_place_is_moved_alone_and_within_bounds() -> None:
    fitness = toy(0)
    measure(fitness, START, LOWEST, HIGHEST)
    moves = [np.array(levels) - np.array(START) for levels in fitness.asked]
    assert len(moves) == 2 * len(START)
    assert all(np.count_nonzero(move) == 1 for move in moves)
    assert [move[1] for move in moves if move[1]] == [-REACH, HIGHEST - START[1]]


@pytest.mark.parametrize("cut", [0, 2])
def test_goes_on_where_it_was(cut: int) -> None:
    fitness, saved = toy(3), []
    whole = measure(fitness, START, LOWEST, HIGHEST, None, lambda costs: saved.append(costs.copy()))
    rest = toy(3)
    np.testing.assert_array_equal(measure(rest, START, LOWEST, HIGHEST, saved[cut]), whole)
    assert rest.asked == fitness.asked[cut + 1 :]


def test_where_nothing_can_move() -> None:
    assert moves(measure(toy(1), START, -1, 1), (1, 1, 1, 1), 1, 1) == []
