"""Budgets of dynamic sparsity per layer by any allocator, as a policy.

Inside a layer the sparsity goes where TEAL puts it. What a layer costs alone is measured at a few budgets; between them
the logarithm is linear (`search/sensitivity.py`). `least-sum` at a mean rate is where WiSparse's search begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spqt_ti.allocation.allocators import Constraint, KeepWithin, ReachRate, allocate
from spqt_ti.allocation.grouped import GroupSettings
from spqt_ti.allocation.problem import Allocation, BudgetProblem
from spqt_ti.container import Container
from spqt_ti.errors import AllocationError
from spqt_ti.parallel.executors import Executor
from spqt_ti.parallel.study import ModelReference, Request
from spqt_ti.sparsity.allocate import tables
from spqt_ti.sparsity.allocate.static import MODES, WINDOW
from spqt_ti.sparsity.allocate.studies import BUDGETS
from spqt_ti.sparsity.methods.teal import TealCalibration
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search import sensitivity
from spqt_ti.sparsity.search.greedy import MOST
from spqt_ti.sparsity.search.realise import realise
from spqt_ti.sparsity.search.sample import spread
from spqt_ti.sparsity.search.scores import thresholds_at

MEASURED = (0.1, 0.3, 0.5, 0.7)  # budgets
STEP = 0.025  # of a layer's weights: one level


@dataclass(frozen=True)
class DynamicSettings:
    """`mode` of `static.MODES`; either the `sparsity` to reach (rounded to whole levels for the allocator, and then
    reached) or the `delta_max` to keep. `measure` as for StaticSettings. Raises AllocationError for neither or both.
    """

    mode: str
    sparsity: float | None = None
    delta_max: float | None = None
    measure: str = "kl"
    windows: int = 4

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise AllocationError(f"unknown mode {self.mode!r}; there are: {', '.join(MODES)}")
        if (self.sparsity is None) == (self.delta_max is None):
            raise AllocationError("give a sparsity to reach or a delta_max to keep, and not both")
        if self.sparsity is not None and self.mode in ("corrected", "paper"):
            raise AllocationError(
                f"mode {self.mode} keeps a delta_max; a sparsity is reached by uniform, greedy, least-sum"
            )
        if self.sparsity is not None and not 0 < self.sparsity <= MOST:
            raise AllocationError(f"a sparsity to reach is above 0 and at most {MOST}, not {self.sparsity:g}")

    def constraint(self) -> Constraint:
        """For the budget problem."""
        if self.sparsity is not None:
            return ReachRate(round(self.sparsity / STEP))
        assert self.delta_max is not None
        return KeepWithin(self.delta_max, GroupSettings())


def policy(
    container: Container,
    teal: TealCalibration,
    settings: DynamicSettings,
    executor: Executor,
    folder: Path | None = None,
    shared: str | None = None,
) -> SparsityPolicy:
    """Measure every layer alone on the calibration's tokens, allocate, and make the policy.

    `folder` and `shared` as for `static.plan`. Raises AllocationError where nothing keeps the limit.
    """
    constraint, layers = settings.constraint(), len(teal.paths)
    thresholds = np.stack([_thresholds(teal, np.full(layers, budget)) for budget in MEASURED], axis=1)
    windows = spread(teal.tokens, settings.windows, min(WINDOW, container.config.max_position_embeddings))
    chosen = {"thresholds": thresholds.tolist(), "windows": [list(window) for window in windows], "threads": 1}
    request = Request(BUDGETS, ModelReference.of(container, shared), chosen)
    kept = None if folder is None else folder / f"budgets-{request.key}.json"
    table = tables.measure(executor, request, layers, range(len(MEASURED)), False, kept)
    found = allocate(MODES[settings.mode], budget_problem(tables.degradations(table, settings.measure)), constraint)
    return _policy(container, teal, settings, found)


def budget_problem(degradation: np.ndarray) -> BudgetProblem:
    """Layers of one size at budgets 0, STEP, .. MOST, of the degradations f64 [layers, len(MEASURED)] alone."""
    budgets = STEP * np.arange(round(MOST / STEP) + 1)
    table = sensitivity.at_budgets(np.maximum(degradation, 0.0), MEASURED, budgets)
    table[:, 0] = 0.0
    return BudgetProblem(budgets.astype(np.float64), np.ones(len(table)), table)


def _policy(
    container: Container, teal: TealCalibration, settings: DynamicSettings, found: Allocation
) -> SparsityPolicy:
    budgets = np.array(found.rates)
    mean = float(budgets.mean())

    def at(level: float) -> np.ndarray:
        return _thresholds(teal, np.clip(budgets + (level - mean), 0.0, MOST))

    asked = mean if settings.sparsity is None else settings.sparsity
    level = mean if settings.sparsity is None else realise(teal.llama, teal.tokens, asked, MOST, at, {})
    source = {
        "text_sha256": teal.quantiles.text_sha256, "tokens": teal.quantiles.tokens, "level": round(level, 6),
        "budgets": [round(b, 6) for b in budgets.tolist()], "measure": settings.measure,
        "degradation": found.degradation,
    }  # fmt: skip
    return SparsityPolicy(settings.mode, round(asked, 6), at(level), container.fingerprint, source)


def _thresholds(teal: TealCalibration, budgets: np.ndarray) -> np.ndarray:
    """f32 [layers, 4] where the layers have `budgets` f64 [layers]."""
    sparsities = [path.at(budget) for path, budget in zip(teal.paths, budgets, strict=True)]
    return thresholds_at(teal.quantiles.quantiles, np.array(sparsities))
