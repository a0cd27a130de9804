"""The fitness of budgets is what evaluation measures, whatever is kept of the individual before."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

from spqt_ti.evaluation.perplexity import evaluate, windows
from spqt_ti.sparsity.divergence import BudgetFitness, divergence, log_softmax
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.wina import column_norms

TOKENS = np.random.default_rng(3).integers(0, 300, 3 * 32).tolist()
PARTS = windows(TOKENS, 32)
THRESHOLDS = np.random.default_rng(4).uniform(0.3, 0.6, (2, 5, 4)).astype(np.float32)
ZERO = 2


@pytest.fixture(scope="module")
def weights():
    """Of one site of each block."""
    return {place: c for place, c in column_norms(tiny_containers.container("gqa")).items() if place[1] == "down"}


@pytest.fixture
def fitness(weights):
    yield BudgetFitness(tiny_containers.llama("gqa"), PARTS, THRESHOLDS, ZERO, weights)
    tiny_containers.llama("gqa").gates.clear()


def test_is_what_evaluation_measures(fitness: BudgetFitness, weights) -> None:
    fitness.settle((0, 0))
    costs = fitness.costs((-2, 1), range(3))
    thresholds = np.stack([THRESHOLDS[0, ZERO - 2], THRESHOLDS[1, ZERO + 1]])
    # Evaluation leaves out the last token of a window, which predicts nothing: a window with one more has all of them.
    longer = [[*part, 0] for part in PARTS]
    (scores,) = evaluate(tiny_containers.llama("gqa"), longer, [SparsityPolicy("x", 0.5, thresholds, "m", {}, weights)])
    np.testing.assert_allclose(costs, [kl.mean() for kl in scores.kl], rtol=1e-4)
    assert costs.min() > 1e-3


@pytest.mark.parametrize("before", [(0, 0), (1, 0), (0, 1), (-1, 2)])
def test_what_is_kept_changes_nothing(fitness: BudgetFitness, before: tuple[int, int]) -> None:
    fitness.settle((2, -2))
    expected = fitness.costs((0, 1), range(3))
    fitness.settle(before)
    np.testing.assert_array_equal(fitness.costs((0, 1), range(3)), expected)
    np.testing.assert_array_equal(fitness.costs((0, 1), [2, 0]), expected[[2, 0]])


def test_open_gates_cost_nothing(weights) -> None:
    fitness = BudgetFitness(tiny_containers.llama("gqa"), PARTS, np.zeros_like(THRESHOLDS), ZERO, weights)
    fitness.settle((0, 0))
    np.testing.assert_allclose(fitness.costs((1, 1), range(3)), 0, atol=1e-6)


def test_divergence_against_float64() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 7, 50)) * 5
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    got = divergence(*(log_softmax(x.astype(np.float32)) for x in logits))
    np.testing.assert_allclose(got, (np.exp(p) * (p - q)).sum(-1), rtol=1e-4)
