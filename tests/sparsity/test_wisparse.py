"""WiSparse as a whole, on a tiny model: what a policy says, and that nothing depends on when it was interrupted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_containers
from hypothesis import given
from hypothesis import strategies as st

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.alpha import ALPHAS
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.evolution import Search
from spqt_ti.sparsity.greedy import MOST
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.wina import column_norms
from spqt_ti.sparsity.wisparse import FARTHEST, STEP, WisparseCalibration, level_range

TOKENS = np.random.default_rng(7).integers(0, 300, 400).tolist()
SEARCH = Search(generations=4, offspring=4)


def calibration(search: Search = SEARCH, folder: Path | None = None) -> WisparseCalibration:
    checkpoint = Checkpoint(folder, {"model": "m"})
    container = tiny_containers.container("gqa")
    return WisparseCalibration(tiny_containers.llama("gqa"), container, "text", TOKENS, search, checkpoint)


@pytest.fixture(scope="module")
def policy() -> SparsityPolicy:
    return calibration().policy(0.5)


def test_budgets(policy: SparsityPolicy) -> None:
    """Exact on average, not too far from the level, and no worse than equal ones by their own fitness."""
    steps = policy.calibration["steps"]
    assert sum(steps) == 0
    assert max(abs(step) for step in steps) * STEP <= FARTHEST + 1e-9
    assert policy.calibration["kl_found"] <= policy.calibration["kl_start"] <= policy.calibration["kl_even"]


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


@pytest.mark.parametrize("saves", [1, 3, 5, 9])
def test_goes_on_where_it_was(saves: int, policy: SparsityPolicy, tmp_path: Path, monkeypatch) -> None:
    """Ctrl-C after so many checkpoints: 2 of blocks, 1 of scores, 4 of sensitivities, then 1 a generation."""
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
    assert count == 11  # none of them twice


def test_another_seed_does_not_go_on_from_this_one(tmp_path: Path) -> None:
    first = calibration(folder=tmp_path).policy(0.5)
    second = calibration(dataclasses.replace(SEARCH, seed=1), tmp_path).policy(0.5)
    assert (first.calibration["seed"], second.calibration["seed"]) == (0, 1)
    assert len(list(tmp_path.glob("*-budgets-*"))) == 2


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    calibration(folder=tmp_path).policy(0.5)
    other = dataclasses.replace(calibration(), checkpoint=Checkpoint(tmp_path, {"model": "other"}))
    with pytest.raises(PolicyError, match="model is m, not other"):
        other.policy(0.5)


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
