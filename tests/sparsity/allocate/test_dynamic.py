"""Dynamic budgets per layer: what is measured is what WiSparse's search measures, and policies follow."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_containers

from spqt_ti.allocation.allocators import KeepWithin, ReachRate, allocate
from spqt_ti.errors import AllocationError
from spqt_ti.parallel.executors import InProcess
from spqt_ti.sparsity.allocate import dynamic
from spqt_ti.sparsity.allocate.dynamic import MEASURED, DynamicSettings, budget_problem
from spqt_ti.sparsity.allocate.studies import SparseLayers
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import teal
from spqt_ti.sparsity.search.divergence import BudgetFitness
from spqt_ti.sparsity.search.evolution import Search

RNG = np.random.default_rng(5)
TOKENS = RNG.integers(0, 300, 400).tolist()
SEARCH = Search(pick=0.1)


@pytest.fixture(scope="module")
def calibration() -> teal.TealCalibration:
    llama, container = tiny_containers.llama("gqa"), tiny_containers.container("gqa")
    return teal.calibrate(llama, container, "text", TOKENS, Checkpoint(), SEARCH)


def test_costs_are_those_of_the_search() -> None:
    thresholds = RNG.uniform(0.2, 0.5, (2, 3, 4)).astype(np.float32)
    thresholds[:, 0] = 0
    windows = [TOKENS[:30], TOKENS[30:60]]
    study = SparseLayers(
        tiny_containers.container("gqa"), {"thresholds": thresholds.tolist(), "windows": windows, "threads": 1}
    )
    fitness = BudgetFitness(tiny_containers.llama("gqa"), windows, thresholds, 0, {})
    fitness.settle((0, 0))
    for levels in ((0, 2), (1, 0), (2, 1)):
        item = [[layer, 1, level] for layer, level in enumerate(levels) if level]
        assert study(item)[0] == pytest.approx(fitness.costs(levels, range(2)).mean(), rel=0.02)
    tiny_containers.llama("gqa").selectors.clear()


def test_policies(calibration: teal.TealCalibration, monkeypatch) -> None:
    """Each mode at a mean or within a limit; the better one costs less by the table."""
    monkeypatch.setattr(dynamic, "WINDOW", 30)
    container, found = tiny_containers.container("gqa"), {}
    for mode, sparsity, limit in (
        ("uniform", 0.4, None), ("least-sum", 0.4, None), ("corrected", None, 0.05), ("least-sum", None, 0.05),
    ):  # fmt: skip
        settings = DynamicSettings(mode, sparsity, limit, windows=2)
        made = dynamic.policy(container, calibration, settings, InProcess())
        made.check(container.fingerprint, 2)
        assert json.loads(made.to_json())["method"] == mode
        assert np.mean(made.calibration["budgets"]) == pytest.approx(made.sparsity, abs=1e-6)
        found[mode, sparsity] = made
    assert found["uniform", 0.4].calibration["budgets"] == [0.4, 0.4]
    assert found["least-sum", 0.4].calibration["degradation"] <= found["uniform", 0.4].calibration["degradation"]
    assert found["corrected", None].calibration["degradation"] <= 0.05
    assert found["least-sum", None].sparsity >= found["corrected", None].sparsity - 1e-9


def test_a_problem_of_budgets() -> None:
    """At a budget of 0 nothing is lost, at a measured one what was measured; both constraints can be kept."""
    table = np.array([[0.001, 0.01, 0.1, 1.0], [0.002, 0.02, 0.2, 2.0]])
    problem = budget_problem(table)
    at = [int(np.argmin(np.abs(problem.rates - budget))) for budget in (0.0, *MEASURED)]
    np.testing.assert_allclose(problem.degradation[:, at[1:]], table)
    assert not problem.degradation[:, at[0]].any()
    assert np.mean(allocate("least-sum", problem, ReachRate(at[3])).rates) == pytest.approx(0.5)
    assert allocate("asaf", problem, KeepWithin(0.01)).degradation <= 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("least-sum",), "not both"),
        (("least-sum", 0.5, 0.01), "not both"),
        (("corrected", 0.5), "keeps a delta_max"),
        (("uniform", 0.95), "at most 0.9"),
        (("best", 0.5), "unknown mode"),
    ],
)
def test_settings_that_make_no_sense(arguments: tuple, message: str) -> None:
    with pytest.raises(AllocationError, match=message):
        DynamicSettings(*arguments)
