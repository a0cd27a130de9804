"""Where the search for levels begins: every place is moved alone, both ways, and the slopes say which places should
give to which. Many random exchanges would be needed to find out as much.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from spqt_ti.sparsity.evolution import Fitness, Levels

REACH = 4  # levels that a place is moved


def measure(
    fitness: Fitness,
    start: Levels,
    lowest: int,
    highest: int,
    known: np.ndarray | None = None,
    save: Callable[[np.ndarray], None] = lambda costs: None,
) -> np.ndarray:
    """Mean costs f64 [places, 2] with one place REACH below and above `start`, within `lowest` and `highest`.

    `known`: what an interrupted call gave `save`, NaN where nothing was measured yet.
    """
    costs = np.full((len(start), 2), np.nan) if known is None else known.copy()
    fitness.settle(start)
    for place in tqdm(range(len(start)), desc="sensitivity", unit="block", leave=False, disable=None):
        for side, level in enumerate(_ends(start[place], lowest, highest)):
            if np.isnan(costs[place, side]):
                moved = (*start[:place], level, *start[place + 1 :])
                costs[place, side] = fitness.costs(moved, range(fitness.parts)).mean()
                save(costs)
    return costs


def moves(costs: np.ndarray, start: Levels, lowest: int, highest: int) -> list[Levels]:
    """Individuals with the sum of `start`, on the way down the slope that `measure` found in `costs`: the place that
    gains most moves 1, 2, .. levels, as far as all stay within `lowest` and `highest`, others in proportion.
    """
    reach = np.array([np.subtract(*_ends(level, lowest, highest)[::-1]) for level in start])
    slopes = (costs[:, 1] - costs[:, 0]) / np.maximum(reach, 1)
    wanted = slopes.mean() - slopes
    largest = float(np.abs(wanted).max())
    found = []
    for size in range(1, highest - lowest + 1) if largest > 0 else ():
        levels = np.array(start) + _whole(wanted * size / largest)
        if levels.min() < lowest or levels.max() > highest:
            break
        found.append(tuple(int(level) for level in levels))
    return found


def _whole(values: np.ndarray) -> np.ndarray:
    """Integers near values that add up to 0, with the same sum: those with the largest remainders are rounded up."""
    whole = np.floor(values).astype(int)
    whole[np.argsort(whole - values, kind="stable")[: -whole.sum()]] += 1
    return whole


def _ends(level: int, lowest: int, highest: int) -> tuple[int, int]:
    return max(level - REACH, lowest), min(level + REACH, highest)
