"""The greedy search does what the paper says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import teal
from spqt_ti.sparsity.search import greedy
from spqt_ti.sparsity.search.evolution import Search
from spqt_ti.sparsity.search.sample import embeddings, spread
from spqt_ti.sparsity.search.scores import quantiles, score, threshold_mask, thresholds_at
from spqt_ti.sparsity.search.stored_layer import StoredLayer, relative_error, unmasked

TOKENS = np.random.default_rng(7).integers(0, 300, 400).tolist()


@pytest.fixture(scope="module")
def calibration() -> teal.TealCalibration:
    return teal.calibrate(tiny_containers.llama("gqa"), tiny_containers.container("gqa"), "text", TOKENS, Checkpoint())


def test_picks(calibration: teal.TealCalibration) -> None:
    """One site a time, by a step of its own, never beyond 0.9, and the effective sparsity is weighed by size."""
    for layer, path in enumerate(calibration.paths):
        sizes = np.array(
            [StoredLayer.load(tiny_containers.container("gqa"), layer).matrices[s].size for s in SITES], float
        )
        np.testing.assert_allclose(path.effective, path.sparsities @ sizes / sizes.sum())
        assert (np.count_nonzero(np.diff(path.sparsities, axis=0), axis=1) == 1).all()
        assert (np.diff(path.effective) > 0).all()
        assert (np.diff(path.effective) <= greedy.STEP + 1e-9).all()
        assert path.sparsities.max() <= greedy.MOST
        assert path.effective[-1] == pytest.approx(greedy.MOST)


@pytest.fixture(scope="module")
def error():
    """The error of layer 0 at sparsities f64 [4], from a run of its own."""
    container = tiny_containers.container("gqa")
    stored, x = (
        StoredLayer.load(container, 0),
        embeddings(container, spread(TOKENS, Search().windows // 4, greedy.WINDOW)),
    )
    dense = stored.run(x, unmasked)
    table = np.stack([quantiles(score(dense.inputs[site], None)) for site in SITES])

    def error(sparsities: np.ndarray) -> float:
        masked = stored.run(x, threshold_mask(thresholds_at(table, sparsities)))
        return relative_error(masked.output, dense.output)

    return error


def test_every_pick_is_the_cheapest(calibration: teal.TealCalibration, error) -> None:
    stored, path = StoredLayer.load(tiny_containers.container("gqa"), 0), calibration.paths[0]
    sizes = np.array([stored.matrices[site].size for site in SITES], float)
    for before, after, recorded in itertools.islice(
        zip(path.sparsities, path.sparsities[1:], path.errors[1:], strict=False), 0, None, 7
    ):
        tried = np.minimum(before + np.diag(greedy.STEP * sizes.sum() / sizes), greedy.MOST)
        errors = [error(row) for i, row in enumerate(tried) if before[i] < greedy.MOST]
        assert recorded == pytest.approx(min(errors), rel=1e-6)
        assert error(after) == pytest.approx(recorded, rel=1e-6)


def test_greedy_is_no_worse_than_uniform(calibration: teal.TealCalibration, error) -> None:
    path = calibration.paths[0]
    rows = range(1, len(path.effective), 4)
    assert sum(path.errors[row] for row in rows) <= sum(error(np.full(4, path.effective[row])) for row in rows)


@pytest.mark.parametrize("level", [0.0, 0.1, 0.4, 0.5, 0.9])
def test_policy_is_at_its_level(calibration: teal.TealCalibration, level: float) -> None:
    """Between the two picks around it, and exactly the level by the sizes of the matrices."""
    container = tiny_containers.container("gqa")
    for layer, path in enumerate(calibration.paths):
        sizes = np.array([StoredLayer.load(container, layer).matrices[s].size for s in SITES], float)
        assert path.at(level) @ sizes / sizes.sum() == pytest.approx(level)
        place = int(np.argmin(np.abs(path.effective - level)))
        assert np.abs(path.at(level) - path.sparsities[place]).max() <= greedy.STEP * sizes.sum() / sizes.min()
    policy = calibration.policy(level)
    assert policy.method == "teal"
    assert (policy.thresholds > 0).any() == (level > 0)


def test_same_text_same_policy(calibration: teal.TealCalibration) -> None:
    again = teal.calibrate(tiny_containers.llama("gqa"), tiny_containers.container("gqa"), "text", TOKENS, Checkpoint())
    assert again.policy(0.5).to_json() == calibration.policy(0.5).to_json()


@pytest.mark.parametrize("level", [-0.1, 0.95, float("nan")])
def test_levels_out_of_range(calibration: teal.TealCalibration, level: float) -> None:
    with pytest.raises(PolicyError, match=r"between 0 and 0\.9"):
        calibration.policy(level)


@pytest.mark.parametrize("cut", [0, 1])
def test_goes_on_where_it_was(cut: int, calibration: teal.TealCalibration, tmp_path, monkeypatch) -> None:
    """Interrupted in layer `cut`; nothing before it is searched again, and the policy is the same."""
    container = tiny_containers.container("gqa")
    checkpoint, searched, real = Checkpoint(tmp_path), [], teal.allocate

    def until_interrupted(*arguments, **options):
        if len(searched) == cut:
            raise KeyboardInterrupt
        searched.append(cut)
        return real(*arguments, **options)

    monkeypatch.setattr(teal, "allocate", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        teal.calibrate(tiny_containers.llama("gqa"), container, "text", TOKENS, checkpoint)
    monkeypatch.setattr(teal, "allocate", lambda *a, **options: searched.append(2) or real(*a, **options))
    again = teal.calibrate(tiny_containers.llama("gqa"), container, "text", TOKENS, checkpoint)
    assert len(searched) == 2
    assert again.policy(0.5).to_json() == calibration.policy(0.5).to_json()
