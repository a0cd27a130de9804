"""What calibration evaluates where an executor says (`spqt_ti/parallel`), in processes of this machine or on a cluster:
the fitness of layer budgets, with the bits of `BudgetFitness`, and the inputs of a text's windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spqt_ti.container import Container
from spqt_ti.model.runner import Llama
from spqt_ti.parallel.executors import Executor, in_order
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.sparsity.search.alpha import weights_of
from spqt_ti.sparsity.search.divergence import BudgetFitness
from spqt_ti.sparsity.search.evolution import Levels

BUDGET_COSTS = "spqt_ti.sparsity.search.swept:BudgetCosts"
WINDOW_MAGNITUDES = "spqt_ti.sparsity.capture:WindowMagnitudes"


class BudgetCosts:
    """BudgetFitness as a study. An item is [levels, parts, levels of the individual that it descends from].

    Settings: "windows"; "thresholds", lists [layers][levels][4]; "zero"; "alphas", lists [layers][4], of which each
    process makes the weights again; "threads".
    """

    def __init__(self, container: Container, settings: Mapping[str, Any]) -> None:
        windows = settings["windows"]
        longest = max(len(window) for window in windows)
        llama = Llama(container, backend_name="cpu", threads=settings["threads"], context=longest)
        weights = weights_of(container, settings["alphas"])
        thresholds = np.array(settings["thresholds"], np.float32)
        self._fitness = BudgetFitness(llama, windows, thresholds, settings["zero"], weights)

    def __call__(self, item: tuple[Sequence[int], Sequence[int], Sequence[int]]) -> np.ndarray:
        """See Study. What an individual descends from decides what is run again, and changes no bit."""
        levels, parts, parent = item
        self._fitness.settle(tuple(parent))
        return self._fitness.costs(tuple(levels), parts)


@dataclass(frozen=True)
class Elsewhere:
    """Where individuals and windows are evaluated: by an executor, on a model that its workers find."""

    executor: Executor
    model: ModelReference

    def fitness(
        self, windows: Sequence[Sequence[int]], thresholds: np.ndarray, zero: int, alphas: np.ndarray
    ) -> SweptFitness:
        """As BudgetFitness, with the alphas f64 [layers, 4] that weights are made of."""
        settings = {
            "windows": [list(map(int, window)) for window in windows], "thresholds": thresholds.tolist(),
            "zero": zero, "alphas": alphas.tolist(), "threads": 1,
        }  # fmt: skip
        return SweptFitness(self.executor, Request(BUDGET_COSTS, self.model, settings), len(windows))

    def magnitudes(
        self, parts: Sequence[Sequence[int]], longest: int, alphas: Sequence[Sequence[float]]
    ) -> Iterator[np.ndarray]:
        """What WindowMagnitudes gives of windows of at most `longest` tokens, in their order."""
        settings = {"longest": longest, "alphas": [list(map(float, of)) for of in alphas], "threads": 1}
        items = [list(map(int, part)) for part in parts]
        yield from in_order(self.executor.run(Request(WINDOW_MAGNITUDES, self.model, settings), items))


class SweptFitness:
    """A BatchFitness: one item per individual."""

    def __init__(self, executor: Executor, request: Request, parts: int) -> None:
        self.parts = parts
        self._executor, self._request = executor, request
        self._settled: Levels = ()

    def costs(self, levels: Levels, parts: Sequence[int]) -> np.ndarray:
        """See Fitness."""
        return next(self.costs_of([(levels, parts)]))

    def costs_of(self, asked: Sequence[tuple[Levels, Sequence[int]]]) -> Iterator[np.ndarray]:
        """See BatchFitness."""
        items = [[list(levels), list(parts), list(self._settled)] for levels, parts in asked]
        yield from in_order(self._executor.run(self._request, items))

    def settle(self, levels: Levels) -> None:
        """See Fitness."""
        self._settled = levels
