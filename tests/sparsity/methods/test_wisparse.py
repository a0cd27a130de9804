"""WiSparse as a whole, on a tiny model: what a policy says, and that nothing depends on when it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_containers
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES
from spqt_ti.parallel.executors import LocalProcesses
from spqt_ti.parallel.study import ModelReference
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import teal, wisparse
from spqt_ti.sparsity.methods.wina import column_norms
from spqt_ti.sparsity.methods.wisparse import FARTHEST, STEP, WisparseCalibration, level_range
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.alpha import ALPHAS
from spqt_ti.sparsity.search.evolution import Search, State
from spqt_ti.sparsity.search.greedy import MOST
from spqt_ti.sparsity.search.swept import Elsewhere

TOKENS = np.random.default_rng(7).integers(0, 300, 400).tolist()
SEARCH = Search(generations=4, offspring=4)


def calibration(search: Search = SEARCH, folder: Path | None = None, model: str = "m") -> WisparseCalibration:
    container = tiny_containers.container("gqa")
    checkpoint = Checkpoint(folder, {"model": model})
    return wisparse.calibrate(tiny_containers.llama("gqa"), container, "text", TOKENS, search, checkpoint)


@pytest.fixture(scope="module")
def policy() -> SparsityPolicy:
    return calibration().policy(0.5)


def test_budgets(policy: SparsityPolicy) -> None:
    """Exact on average, not too far from the level, and no worse than equal ones by their own fitness."""
    c = policy.calibration
    assert sum(c["steps"]) == 0
    assert max(abs(step) for step in c["steps"]) * STEP <= FARTHEST + 1e-9
    assert c["kl_found"] <= c["kl_even"]


@pytest.mark.parametrize(
    ("unseen", "kept"),
    [((0.2, 0.2), True), ((0.3, 0.3), True), ((0.4, 0.25), True), ((0.4, 0.4), False), ((0.5, 0.35), False)],
)
def test_budgets_that_unseen_windows_do_not_confirm(unseen, kept: bool, monkeypatch) -> None:
    """The search finds other than equal budgets, which cost 0.3 on both unseen windows. They are dropped if they are
    worse there by more than a standard error.
    """
    made = calibration()
    found = (1, -1)

    class Fitness:
        parts = 2

        def __init__(self, *arguments) -> None:
            self.costs = lambda levels, parts: np.array(unseen if levels == found else (0.3, 0.3))

        def settle(self, levels) -> None: ...

    state = State(1, found, np.array([0.1]), (0.2, 0.1))
    monkeypatch.setattr(wisparse, "BudgetFitness", Fitness)
    monkeypatch.setattr(wisparse, "evolve", lambda *arguments: state)
    assert made.policy(0.5).calibration["steps"] == list(found if kept else (0, 0))


def test_with_alphas_of_zero_and_equal_budgets_it_is_teal(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(wisparse.alpha, "ALPHAS", (0.0,))
    monkeypatch.setattr(wisparse, "_of_least_sum", lambda costs, budgets, lowest: (0,) * len(costs))
    ours = calibration(Search(generations=0)).policy(0.4)
    llama, container = tiny_containers.llama("gqa"), tiny_containers.container("gqa")
    theirs = teal.calibrate(llama, container, "text", TOKENS, Checkpoint()).policy(0.4)
    np.testing.assert_array_equal(ours.thresholds, theirs.thresholds)
    assert ours.weights == {}


def test_what_serves_all_levels_is_done_once(policy: SparsityPolicy, monkeypatch) -> None:
    made = calibration()
    for name in ("capture", "_inside_layers", "_alone"):
        monkeypatch.delattr(wisparse, name)
    assert made.policy(0.5).to_json() == policy.to_json()
    assert made.policy(0.3).thresholds.sum() < policy.thresholds.sum()


def test_weights_are_norms_to_the_power_of_alpha(policy: SparsityPolicy) -> None:
    norms = column_norms(tiny_containers.container("gqa"))
    for layer, row in enumerate(policy.calibration["alphas"]):
        for site, alpha in zip(SITES, row, strict=True):
            assert alpha in ALPHAS
            assert ((layer, site) in policy.weights) == (alpha > 0)
            if alpha > 0:
                np.testing.assert_allclose(policy.weights[layer, site], norms[layer, site] ** alpha, rtol=1e-5)


def test_can_be_written_and_read(policy: SparsityPolicy) -> None:
    assert SparsityPolicy.from_json(policy.to_json()).to_json() == policy.to_json()


def test_same_seed_same_file(policy: SparsityPolicy) -> None:
    assert calibration().policy(0.5).to_json() == policy.to_json()


@pytest.mark.parametrize("saves", [1, 3, 4, 7])
def test_goes_on_where_it_was(saves: int, policy: SparsityPolicy, tmp_path: Path, monkeypatch) -> None:
    """Ctrl-C after so many checkpoints: 2 of layers, 1 of scores, 2 of layers alone, then 1 a generation."""
    real, count = Checkpoint.save, 0

    def interrupted(self, *arguments, **settings):
        nonlocal count
        real(self, *arguments, **settings)
        count += 1
        if count == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibration(folder=tmp_path).policy(0.5)
    assert calibration(folder=tmp_path).policy(0.5).to_json() == policy.to_json()
    assert count == 9  # none of them twice


def test_budgets_evaluated_elsewhere_are_the_same_file() -> None:
    """In two processes with a thread each, instead of this one with two; with the product's 16-bit products."""
    search = Search(generations=2, offspring=3)
    container, llama = tiny_containers.container("gqa"), tiny_containers.llama("gqa", exact=False)
    with contextlib.closing(LocalProcesses(2)) as processes:
        found = [
            wisparse.calibrate(
                llama, container, "text", TOKENS, search, Checkpoint(),
                executor and Elsewhere(executor, ModelReference.of(container)),
            ).policy(0.5).to_json()
            for executor in (None, processes)
        ]  # fmt: skip
    assert found[1] == found[0]


def test_another_seed_does_not_go_on_from_this_one(tmp_path: Path) -> None:
    first = calibration(folder=tmp_path).policy(0.5)
    second = calibration(dataclasses.replace(SEARCH, seed=1), tmp_path).policy(0.5)
    assert (first.calibration["seed"], second.calibration["seed"]) == (0, 1)
    assert len(list(tmp_path.glob("*-budgets-*"))) == 2


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    calibration(folder=tmp_path).policy(0.5)
    with pytest.raises(PolicyError, match="model is m, not other"):
        calibration(folder=tmp_path, model="other")


def test_the_model_is_dense_afterwards(policy: SparsityPolicy) -> None:
    assert not tiny_containers.llama("gqa").thresholds.any()


def test_level_zero_is_dense() -> None:
    assert not calibration(Search(generations=1, offspring=2)).policy(0.0).thresholds.any()


@pytest.mark.parametrize("level", [-0.1, 0.95, float("nan")])
def test_levels_out_of_range(level: float) -> None:
    with pytest.raises(PolicyError, match=r"between 0 and 0\.9"):
        calibration().policy(level)


@given(st.floats(0, MOST))
def test_range_of_budgets(sparsity: float) -> None:
    lowest, highest = level_range(sparsity)
    assert lowest <= 0 <= highest
    for level in (lowest, highest):
        assert -1e-9 <= sparsity + STEP * level <= MOST + 1e-9
        assert abs(STEP * level) <= FARTHEST + 1e-9
    assert sparsity + STEP * (highest + 1) > min(MOST, sparsity + FARTHEST) - 1e-9
    assert sparsity + STEP * (lowest - 1) < max(0, sparsity - FARTHEST) + 1e-9
