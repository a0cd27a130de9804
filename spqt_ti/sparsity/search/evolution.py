"""Evolutionary search of integer levels whose sum is fixed: which layer may skip how much of a shared budget.

After EvoPress (arXiv 2410.14649): a (1 + lambda) strategy. A mutation takes a step from one unit and gives it to
another; children are compared on few parts of the data, the better ones on more, and the last one replaces the parent
if it is better on all, by more than chance. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from spqt_ti.progress import progress
from spqt_ti.sparsity.search.greedy import STEP

Levels = tuple[int, ...]

_TRIES = 20  # mutations per wanted child: where few distinct ones exist, a generation is smaller


class Fitness(Protocol):
    """What is to be made small: the mean over `parts` pieces of the data of a cost."""

    parts: int

    def costs(self, levels: Levels, parts: Sequence[int]) -> np.ndarray:
        """Costs f64 [len(parts)] of an individual on some parts."""

    def settle(self, levels: Levels) -> None:
        """Individuals to come are like this one: what they share with it may be kept."""


@runtime_checkable
class BatchFitness(Fitness, Protocol):
    """A fitness that evaluates many individuals at a time."""

    def costs_of(self, asked: Sequence[tuple[Levels, Sequence[int]]]) -> Iterator[np.ndarray]:
        """Costs f64 [len(parts)] of each (levels, parts), in the order that was asked for."""


def costs_of(fitness: Fitness, asked: Sequence[tuple[Levels, Sequence[int]]]) -> Iterator[np.ndarray]:
    """Costs f64 [len(parts)] of each (levels, parts), in order: at a time where the fitness can, else one by one."""
    if isinstance(fitness, BatchFitness):
        yield from fitness.costs_of(asked)
        return
    for levels, parts in asked:
        yield fitness.costs(levels, parts)


@dataclass(frozen=True)
class Search:
    """Sizes of a calibration's searches.

    Each of `stages` is (share of the parts, survivors): what survives on few parts is compared on more; the last stage
    is all parts and one survivor. `flips`: at most so many steps move in a mutation. Budgets are compared on `windows`
    of the text, alphas on a half of them, picks inside a layer on a quarter; layers are measured alone on
    `alone_windows`. `pick`: share of a layer's weights per pick.
    """

    generations: int = 10
    offspring: int = 16
    stages: tuple[tuple[float, int], ...] = ((0.125, 8), (0.25, 2))
    flips: int = 3
    seed: int = 0
    windows: int = 16
    alone_windows: int = 8
    pick: float = STEP


# To see a method work: a tenth of the time, and a rougher policy.
QUICK = Search(generations=1, offspring=4, windows=8, alone_windows=1, pick=0.1)


@dataclass(frozen=True)
class State:
    """A search after `generation` generations: the best individual, its costs f64 [parts], and the mean cost after
    each generation, that of the start first.
    """

    generation: int
    levels: Levels
    costs: np.ndarray
    history: tuple[float, ...]


def evolve(
    fitness: Fitness,
    starts: Sequence[Levels],
    lowest: int,
    highest: int,
    search: Search,
    state: State | None = None,
    save: Callable[[State], None] = lambda state: None,
) -> State:
    """Search from the best of `starts`, or go on from `state`; `save` is called with the state after every generation.

    Levels stay within `lowest` and `highest`, and their sum is that of the start. The result depends only on the
    arguments, not on where the search was interrupted. ValueError if a start is out of range.
    """
    outside = [start for start in starts if not all(lowest <= level <= highest for level in start)]
    if outside:
        raise ValueError(f"levels {outside[0]} are not within {lowest} .. {highest}")
    if state is None:
        fitness.settle(starts[0])
        found = costs_of(fitness, [(start, range(fitness.parts)) for start in starts])
        costs, best = min(zip(found, starts, strict=True), key=lambda pair: pair[0].mean())
        state = State(0, best, costs, (float(costs.mean()),))
    fitness.settle(state.levels)
    with progress(total=search.generations, initial=state.generation, desc="evolution", unit="generations") as bar:
        while state.generation < search.generations:
            state = _generation(fitness, state, lowest, highest, search)
            save(state)
            bar.set_postfix(cost=f"{state.history[-1]:.5f}", refresh=False)
            bar.update()
    return state


def _generation(fitness: Fitness, state: State, lowest: int, highest: int, search: Search) -> State:
    random = np.random.default_rng([search.seed, state.generation])
    order = random.permutation(fitness.parts)
    children = _children(random, state.levels, lowest, highest, search)
    known: dict[Levels, list[float]] = {child: [] for child in children}
    for share, survivors in (*search.stages, (1.0, 1)):
        upto = max(1, round(share * fitness.parts))
        asked = [(child, [int(i) for i in order[len(known[child]) : upto]]) for child in children]
        for child, costs in zip(children, costs_of(fitness, asked), strict=True):
            known[child].extend(costs)
        children = sorted(children, key=lambda child: float(np.mean(known[child])))[:survivors]
    levels, costs = state.levels, state.costs
    if children:
        best = np.empty(fitness.parts)
        best[order] = known[children[0]]
        if is_better(best, costs, errors=2):
            levels, costs = children[0], best
            fitness.settle(levels)
    return State(state.generation + 1, levels, costs, (*state.history, float(costs.mean())))


def is_better(costs: np.ndarray, than: np.ndarray, errors: float) -> bool:
    """By more than so many standard errors of the paired difference: the best of many is lucky on these parts."""
    change = costs - than
    error = change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else 0.0
    return bool(change.mean() < -errors * error)


def _children(random: np.random.Generator, parent: Levels, lowest: int, highest: int, search: Search) -> list[Levels]:
    """Up to `search.offspring` distinct mutations of `parent`."""
    children: dict[Levels, None] = {}
    for _ in range(_TRIES * search.offspring):
        child = mutate(random, parent, lowest, highest, search.flips)
        if child != parent:
            children[child] = None
        if len(children) == search.offspring:
            break
    return list(children)


def mutate(random: np.random.Generator, parent: Levels, lowest: int, highest: int, flips: int) -> Levels:
    """Move up to `flips` steps (few are likelier: the lesser of two draws), each from one unit to another."""
    levels = list(parent)
    for _ in range(min(random.integers(1, flips + 1, 2))):
        givers = [i for i, level in enumerate(levels) if level > lowest]
        if not givers:
            break
        giver = givers[random.integers(len(givers))]
        takers = [i for i, level in enumerate(levels) if level < highest and i != giver]
        if not takers:
            break
        levels[giver] -= 1
        levels[takers[random.integers(len(takers))]] += 1
    return tuple(levels)
