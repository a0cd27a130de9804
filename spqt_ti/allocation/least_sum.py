"""Budgets per item whose degradations have the least sum, for a given sum of levels: exactly, by dynamic programming.

WiSparse's search for budgets begins there (`sparsity/methods/wisparse.py`).
"""

from __future__ import annotations

import numpy as np

from spqt_ti.allocation.problem import F64Array


def cheapest(costs: F64Array, total: int) -> tuple[int, ...]:
    """The levels, 0 to `costs.shape[1]` - 1, whose sum is `total` and whose costs' sum is least, of costs f64 [items,
    levels]. ValueError where no levels have that sum.
    """
    items, count = costs.shape
    if not 0 <= total <= (count - 1) * items:
        raise ValueError(f"no {items} levels from 0 to {count - 1} add up to {total}")
    least = np.full(total + 1, np.inf)
    least[0] = 0.0
    choices = np.zeros((items, total + 1), int)
    for item in range(items):
        options = np.full((count, total + 1), np.inf)
        for level in range(min(count, total + 1)):
            options[level, level:] = least[: total + 1 - level] + costs[item, level]
        choices[item], least = options.argmin(axis=0), options.min(axis=0)
    found = []
    for item in range(items - 1, -1, -1):
        found.append(int(choices[item, total]))
        total -= found[-1]
    return tuple(reversed(found))
