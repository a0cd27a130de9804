"""The fitness of budgets is a divergence of masked prefill, whatever is kept of the individual before."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

from spqt_ti.evaluation.perplexity import windows
from spqt_ti.sparsity.methods.wina import column_norms
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.search.divergence import BudgetFitness, divergence, log_softmax

TOKENS = np.random.default_rng(3).integers(0, 300, 3 * 32).tolist()
PARTS = windows(TOKENS, 32)
THRESHOLDS = np.random.default_rng(4).uniform(0.3, 0.6, (2, 5, 4)).astype(np.float32)
ZERO = 2


@pytest.fixture(scope="module")
def weights():
    """Of one site of each layer."""
    return {place: c for place, c in column_norms(tiny_containers.container("gqa")).items() if place[1] == "down"}


@pytest.fixture
def fitness(weights):
    yield BudgetFitness(tiny_containers.llama("gqa"), PARTS, THRESHOLDS, ZERO, weights)
    tiny_containers.llama("gqa").selectors.clear()


def test_is_the_divergence_of_masked_prefill(fitness: BudgetFitness, weights) -> None:
    """Of all but the first quarter of every window."""
    fitness.settle((0, 0))
    costs = fitness.costs((-2, 1), range(3))
    llama, thresholds = tiny_containers.llama("gqa"), np.stack([THRESHOLDS[0, ZERO - 2], THRESHOLDS[1, ZERO + 1]])
    policies = {False: None, True: SparsityPolicy("x", 0.5, thresholds, "m", {}, weights)}
    for part, cost in zip(PARTS, costs, strict=True):
        logs = []
        for masked, policy in policies.items():
            llama.selectors.clear()
            if policy:
                policy.apply(llama)
            llama.reset()
            logs.append(log_softmax(llama.prefill(part, "all", masked)[len(part) // 4 :]))
        assert cost == pytest.approx(divergence(*logs).mean(), rel=1e-4)
    assert costs.min() > 1e-3


@pytest.mark.parametrize("before", [(0, 0), (1, 0), (0, 1), (-1, 2)])
def test_what_is_kept_changes_nothing(fitness: BudgetFitness, before: tuple[int, int]) -> None:
    fitness.settle((2, -2))
    expected = fitness.costs((0, 1), range(3))
    fitness.settle(before)
    np.testing.assert_array_equal(fitness.costs((0, 1), range(3)), expected)
    np.testing.assert_array_equal(fitness.costs((0, 1), [2, 0]), expected[[2, 0]])


def test_open_thresholds_cost_nothing(weights) -> None:
    fitness = BudgetFitness(tiny_containers.llama("gqa"), PARTS, np.zeros_like(THRESHOLDS), ZERO, weights)
    fitness.settle((0, 0))
    np.testing.assert_allclose(fitness.costs((1, 1), range(3)), 0, atol=1e-6)


def test_divergence_against_float64() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 7, 50)) * 5
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    got = divergence(*(log_softmax(x.astype(np.float32)) for x in logits))
    np.testing.assert_allclose(got, (np.exp(p) * (p - q)).sum(-1), rtol=1e-4)
