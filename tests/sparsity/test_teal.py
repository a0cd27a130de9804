"""The NumPy block is the model's, and the greedy search does what the paper says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity import teal, uniform
from spqt_ti.sparsity.block import Block, unmasked

TOKENS = np.random.default_rng(7).integers(0, 300, 400).tolist()


def embedded(case: str, tokens: list[int]) -> np.ndarray:
    return tiny_containers.container(case).dequantize("model.embed_tokens")[tokens][None]


@pytest.mark.parametrize("case", ["gqa", "mqa+wide_heads", "narrow_heads+biases", "llama3_rope"])
def test_block_reads_what_the_model_reads(case: str) -> None:
    model, seen = tiny_containers.llama(case), {}
    model.reset()
    model.gates.clear()
    tokens = TOKENS[:48]
    model.prefill(tokens, "none", observer=lambda layer, site, x: seen.__setitem__((layer, site), x.copy()))
    x = embedded(case, tokens)
    for layer in range(2):
        trace = Block.load(tiny_containers.container(case), layer).run(x, unmasked)
        for site in SITES:
            got, expected = trace.inputs[site][0], seen[layer, site]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        x = trace.output


@pytest.mark.parametrize("site", SITES)
def test_reusing_what_comes_before_changes_nothing(site: str) -> None:
    block, x = Block.load(tiny_containers.container("gqa"), 0), embedded("gqa", TOKENS[:20])
    first = np.full(4, 0.3, np.float32)
    changed = first.copy()
    changed[SITES.index(site)] = 0.8
    reused = block.run(x, teal.threshold_mask(changed), site, block.run(x, teal.threshold_mask(first)))
    fresh = block.run(x, teal.threshold_mask(changed))
    np.testing.assert_array_equal(reused.output, fresh.output)


@pytest.fixture(scope="module")
def calibration() -> teal.TealCalibration:
    model = tiny_containers.llama("gqa")
    model.gates.clear()
    return teal.calibrate(model, tiny_containers.container("gqa"), "text", TOKENS)


def test_picks(calibration: teal.TealCalibration) -> None:
    """One site a time, by a step of its own, never beyond 0.9, and the effective sparsity is weighed by size."""
    for layer, path in enumerate(calibration.paths):
        sizes = np.array([Block.load(tiny_containers.container("gqa"), layer).matrices[s].size for s in SITES], float)
        np.testing.assert_allclose(path.effective, path.sparsities @ sizes / sizes.sum())
        assert (np.count_nonzero(np.diff(path.sparsities, axis=0), axis=1) == 1).all()
        assert (np.diff(path.effective) > 0).all()
        assert (np.diff(path.effective) <= teal.STEP + 1e-9).all()
        assert path.sparsities.max() <= teal.MOST
        assert path.effective[-1] == pytest.approx(teal.MOST)


def test_every_pick_is_the_cheapest(calibration: teal.TealCalibration) -> None:
    container = tiny_containers.container("gqa")
    block, x, path = Block.load(container, 0), teal.sample(container, TOKENS), calibration.paths[0]
    sizes = np.array([block.matrices[site].size for site in SITES], float)
    dense = block.run(x, unmasked).output

    def error(sparsities: np.ndarray) -> float:
        mask = teal.threshold_mask(teal.thresholds_at(calibration.quantiles, 0, sparsities))
        return float(np.square(block.run(x, mask).output - dense, dtype=np.float64).sum())

    for before, after, recorded in itertools.islice(
        zip(path.sparsities, path.sparsities[1:], path.errors[1:], strict=False), 0, None, 7
    ):
        tried = np.minimum(before + np.diag(teal.STEP * sizes.sum() / sizes), teal.MOST)
        errors = [error(row) for i, row in enumerate(tried) if before[i] < teal.MOST]
        assert recorded == pytest.approx(min(errors), rel=1e-6)
        assert error(after) == pytest.approx(recorded, rel=1e-6)


def test_greedy_is_no_worse_than_uniform(calibration: teal.TealCalibration) -> None:
    container = tiny_containers.container("gqa")
    block, x, path = Block.load(container, 0), teal.sample(container, TOKENS), calibration.paths[0]
    dense = block.run(x, unmasked).output
    greedy = even = 0.0
    for row in range(1, len(path.effective), 4):
        mask = teal.threshold_mask(teal.thresholds_at(calibration.quantiles, 0, np.full(4, path.effective[row])))
        even += float(np.square(block.run(x, mask).output - dense, dtype=np.float64).sum())
        greedy += path.errors[row]
    assert greedy <= even


@pytest.mark.parametrize("level", [0.0, 0.1, 0.4, 0.5, 0.9])
def test_policy_is_within_a_step_of_its_level(calibration: teal.TealCalibration, level: float) -> None:
    for path in calibration.paths:
        place = int(np.argmin(np.abs(path.effective - level)))
        assert abs(path.effective[place] - level) <= teal.STEP
    policy = calibration.policy(level)
    assert policy.method == "teal"
    assert (policy.thresholds > 0).any() == (level > 0)


def test_same_text_same_policy(calibration: teal.TealCalibration) -> None:
    model = tiny_containers.llama("gqa")
    again = teal.calibrate(model, tiny_containers.container("gqa"), "text", TOKENS)
    assert again.policy(0.5).to_json() == calibration.policy(0.5).to_json()


@pytest.mark.parametrize("level", [-0.1, 0.95, float("nan")])
def test_levels_out_of_range(calibration: teal.TealCalibration, level: float) -> None:
    with pytest.raises(PolicyError, match=r"between 0 and 0\.9"):
        calibration.policy(level)


def test_thresholds_of_a_share_of_the_inputs(calibration: teal.TealCalibration) -> None:
    quantiles = calibration.quantiles
    np.testing.assert_array_equal(teal.thresholds_at(quantiles, 1, np.zeros(4)), np.zeros(4))
    np.testing.assert_allclose(
        teal.thresholds_at(quantiles, 1, np.full(4, 0.5)), quantiles.quantiles[1, :, uniform.LEVELS.index(0.5)]
    )
