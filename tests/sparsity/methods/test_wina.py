"""WINA: weights are column norms, and the threshold leaves the share of scores that was asked for."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import PolicyError
from spqt_ti.model.sites import SITES, Site
from spqt_ti.sparsity.methods import wina

TOKENS = np.random.default_rng(7).integers(0, 300, 400).tolist()


@pytest.fixture(scope="module")
def calibration() -> wina.WinaCalibration:
    model = tiny_containers.llama("gqa")
    model.selectors.clear()
    return wina.calibrate(model, tiny_containers.container("gqa"), "text", TOKENS)


def test_weights_are_the_norms_of_the_columns(calibration: wina.WinaCalibration) -> None:
    container = tiny_containers.container("gqa")
    for layer, site in itertools.product(range(2), Site):
        matrix = container.dequantize(container.matrix(layer, site))
        np.testing.assert_allclose(calibration.weights[layer, site.label], np.linalg.norm(matrix, axis=0), rtol=1e-5)


@pytest.mark.parametrize("level", [0.25, 0.5, 0.8])
def test_share_of_the_scores_below_the_threshold(calibration: wina.WinaCalibration, level: float) -> None:
    """On the calibration tokens themselves, densely run; a bin of the histogram is 0.4 % of a score wide."""
    model, policy = tiny_containers.llama("gqa"), calibration.policy(level)
    below, total = np.zeros((2, 4)), np.zeros((2, 4))

    def observe(layer: int, site: str, x: np.ndarray) -> None:
        scores = np.abs(x) * policy.weights[layer, site]
        place = layer, SITES.index(site)
        below[place] += np.count_nonzero(scores <= policy.thresholds[place])
        total[place] += scores.size

    for start in range(0, len(TOKENS), model.context):
        model.reset()
        model.prefill(TOKENS[start : start + model.context], "none", observer=observe)
    np.testing.assert_allclose(below / total, level, atol=0.005)


def test_on_orthogonal_columns_the_largest_scores_are_the_best_choice() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        matrix = np.linalg.qr(generator.standard_normal((9, 6)))[0] * generator.uniform(0.2, 3, 6)
        x = generator.standard_normal(6)
        chosen = set(np.argsort(np.abs(x) * np.linalg.norm(matrix, axis=0))[3:].tolist())
        best = min(
            itertools.combinations(range(6), 3),
            key=lambda kept: float(np.square(matrix @ np.where(np.isin(np.arange(6), kept), 0, x)).sum()),
        )
        assert chosen == set(best)


def test_weights_that_do_not_fit_leave_the_model_dense(calibration: wina.WinaCalibration) -> None:
    model = tiny_containers.llama("gqa")
    short = {(0, "down"): np.ones(3, np.float32)}
    with pytest.raises(PolicyError, match=r"layer 0: weights of down have shape \(3,\)"):
        dataclasses.replace(calibration.policy(0.5), weights=short).apply(model)
    assert not model.thresholds.any()


def test_decoding_skips_what_the_scores_say(calibration: wina.WinaCalibration) -> None:
    """The first site's inputs are the normalised embedding, which sparsity before it does not change."""
    model, policy, seen = tiny_containers.llama("gqa"), calibration.policy(0.5), {}
    model.selectors.clear()
    model.reset()
    model.prefill([17], "none", observer=lambda layer, site, x: seen.setdefault((layer, site), x[0].copy()))
    policy.apply(model)
    model.reset()
    model.decode(17)
    scores = np.abs(seen[0, "qkv"]) * policy.weights[0, "qkv"]
    assert model.active[0, 0] == np.count_nonzero(scores > policy.thresholds[0, 0])
    model.selectors.clear()
