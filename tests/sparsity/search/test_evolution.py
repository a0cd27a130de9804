"""The search of levels: budgets are exact, it never gets worse, it finds what is there, and it can be cut off."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.sparsity.search.evolution import Levels, Search, State, evolve, is_better, mutate

LOWEST, HIGHEST = -3, 3


class Toy:
    """Separable: every place has a cost of its own per level, parts of the data differ a little."""

    def __init__(self, places: int, parts: int = 8, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        steps = np.sort(generator.uniform(0.1, 2, (places, HIGHEST - LOWEST + 1)), axis=1)  # convex, so flips suffice
        self.table, self.parts = np.cumsum(steps, axis=1), parts
        self.noise = generator.uniform(0.9, 1.1, parts)
        self.asked: list[tuple[Levels, tuple[int, ...]]] = []
        self.settled: list[Levels] = []

    def cost(self, levels: Levels) -> float:
        return float(sum(self.table[i, level - LOWEST] for i, level in enumerate(levels)))

    def costs(self, levels: Levels, parts: Sequence[int]) -> np.ndarray:
        self.asked.append((levels, tuple(parts)))
        return self.cost(levels) * self.noise[list(parts)]

    def settle(self, levels: Levels) -> None:
        self.settled.append(levels)


def start(places: int) -> Levels:
    return (0,) * places


def run(toy: Toy, places: int, search: Search, state: State | None = None) -> tuple[State, list[State]]:
    saved: list[State] = []
    return evolve(toy, [start(places)], LOWEST, HIGHEST, search, state, saved.append), saved


@given(st.lists(st.integers(LOWEST, HIGHEST), min_size=1, max_size=8), st.integers(1, 4), st.integers(0, 99))
def test_a_mutation_keeps_the_budget(levels: list[int], flips: int, seed: int) -> None:
    child = mutate(np.random.default_rng(seed), tuple(levels), LOWEST, HIGHEST, flips)
    assert sum(child) == sum(levels)
    assert all(LOWEST <= level <= HIGHEST for level in child)
    assert sum(abs(a - b) for a, b in zip(child, levels, strict=True)) <= 2 * flips


@settings(max_examples=20)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_budget_is_exact_and_cost_never_worsens(places: int, seed: int) -> None:
    _, saved = run(Toy(places, seed=seed), places, Search(generations=6, offspring=5, seed=seed))
    assert [state.generation for state in saved] == list(range(1, 7))
    assert all(sum(state.levels) == 0 and min(state.levels) >= LOWEST for state in saved)
    history = saved[-1].history
    assert len(history) == 7
    assert all(after <= before for before, after in itertools.pairwise(history))
    assert history[-1] == pytest.approx(saved[-1].costs.mean())


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_best_of_all(seed: int) -> None:
    toy, places = Toy(4, seed=seed), 4
    every = itertools.product(range(LOWEST, HIGHEST + 1), repeat=places)
    best = min((levels for levels in every if sum(levels) == 0), key=toy.cost)
    state, _ = run(toy, places, Search(generations=60, seed=seed))
    assert state.levels == best


def test_children_are_distinct_and_fewer_on_more_data() -> None:
    toy, places = Toy(6), 6
    run(toy, places, Search(generations=1))
    children = toy.asked[1:]  # after the start
    first = [levels for levels, parts in children[:16]]
    assert len(set(first)) == 16
    assert start(places) not in first
    assert [len(parts) for _, parts in children] == [1] * 16 + [1] * 8 + [6] * 2
    best = children[-1][0]
    seen = [part for levels, parts in children if levels == best for part in parts]
    assert sorted(seen) == list(range(8))  # every part once


def test_what_is_settled_on_is_the_best() -> None:
    toy = Toy(5)
    _, saved = run(toy, 5, Search(generations=10))
    best = [start(5), *(state.levels for state in saved)]
    assert [levels for levels, _ in itertools.groupby(toy.settled)] == [levels for levels, _ in itertools.groupby(best)]
    assert len(toy.settled) > 1


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_goes_on_to_the_same_result(cut: int) -> None:
    whole, saved = run(Toy(5), 5, Search(generations=8, seed=4))
    resumed, _ = run(Toy(5), 5, Search(generations=8, seed=4), saved[cut])
    assert resumed.levels == whole.levels
    assert resumed.history == whole.history
    np.testing.assert_array_equal(resumed.costs, whole.costs)


def test_luck_is_not_enough() -> None:
    """Better on average, but no more than the parts differ among themselves."""
    parent = np.array([1.0, 1.0, 1.0, 1.0])
    assert not is_better(np.array([0.2, 1.3, 1.2, 1.1]), parent, 2)
    assert is_better(np.array([0.9, 0.95, 0.9, 1.0]), parent, 2)
    assert not is_better(np.array([0.9, 0.95, 0.9, 1.0]), parent, 3)
    assert not is_better(parent, parent, 0)
    assert is_better(np.array([0.9]), np.array([1.0]), 2)


def test_begins_with_the_best_of_several() -> None:
    toy, good = Toy(4), (1, -1, 2, -2)
    starts = sorted([start(4), good], key=toy.cost)
    for order in (starts, starts[::-1]):
        assert evolve(toy, order, LOWEST, HIGHEST, Search(generations=0)).levels == starts[0]


def test_another_seed_is_another_search() -> None:
    histories = {run(Toy(6), 6, Search(generations=4, seed=seed))[0].history for seed in range(4)}
    assert len(histories) > 1


def test_where_nothing_can_move() -> None:
    toy = Toy(1)
    state, _ = run(toy, 1, Search(generations=3))
    assert state.levels == (0,)
    assert evolve(Toy(3), [(0, 0, 0)], 0, 0, Search(generations=2)).levels == (0, 0, 0)


def test_start_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"not within -3 \.\. 3"):
        evolve(Toy(2), [(0, 0), (4, -4)], LOWEST, HIGHEST, Search())
