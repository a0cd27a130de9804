"""Truncated gates against NumPy's SVD and against the inputs that they were whitened with."""

import numpy as np
import pytest

from spqt_ti.model.predictors import NeuronPredictor
from spqt_ti.sparsity.predictors.factors import cholesky, factorise

HIDDEN, INTERMEDIATE, TOKENS = 24, 61, 200
RANKS = (1, 5, 17, HIDDEN)


def case(seed=0):
    """A gate, and inputs of very unequal directions."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((TOKENS, HIDDEN)) * np.geomspace(3, 0.01, HIDDEN) @ rng.standard_normal((HIDDEN, HIDDEN))
    return rng.standard_normal((INTERMEDIATE, HIDDEN)), x


def output_error(gate, x, factors):
    return np.linalg.norm((gate - factors.fc2 @ factors.fc1) @ x.T)


@pytest.mark.parametrize("rank", RANKS)
def test_error_is_the_dropped_singular_values(rank):
    gate, x = case()
    factors = factorise(gate, x.T @ x, rank)
    expected = np.linalg.svd(gate @ np.linalg.cholesky(x.T @ x), compute_uv=False)
    np.testing.assert_allclose(factors.sigma, expected, rtol=1e-6, atol=1e-6 * expected[0])
    np.testing.assert_allclose(output_error(gate, x, factors), factors.error(), rtol=1e-6, atol=1e-6 * expected[0])
    assert factors.jitter == 0


@pytest.mark.parametrize("rank", RANKS)
def test_no_worse_than_plain_svd(rank):
    gate, x = case(rank)
    whitened, plain = factorise(gate, x.T @ x, rank), factorise(gate, None, rank)
    assert output_error(gate, x, whitened) <= output_error(gate, x, plain) + 1e-6


@pytest.mark.parametrize("rank", RANKS)
def test_without_whitening_it_is_plain_svd(rank):
    gate, _ = case()
    u, sigma, vh = np.linalg.svd(gate, full_matrices=False)
    plain = factorise(gate, None, rank)
    np.testing.assert_allclose(plain.fc2 @ plain.fc1, (u[:, :rank] * sigma[:rank]) @ vh[:rank], atol=1e-9)
    unit = factorise(gate, np.eye(HIDDEN), rank)
    np.testing.assert_allclose(unit.fc2 @ unit.fc1, plain.fc2 @ plain.fc1, atol=1e-9)


def test_whole_rank_is_the_gate():
    gate, x = case()
    factors = factorise(gate, x.T @ x, HIDDEN)
    np.testing.assert_allclose(factors.fc2 @ factors.fc1, gate, atol=1e-8)
    fc1, fc2 = factors.stored()
    assert fc1.dtype == fc2.dtype == np.float32
    off = np.abs(x @ gate.T) > 0.05 * np.abs(x @ gate.T).max(axis=0)  # beyond what f16 rounds
    guess = NeuronPredictor(fc1, fc2, np.zeros(INTERMEDIATE, np.float32)).predict(x)
    np.testing.assert_array_equal(guess[off], (x @ gate.T > 0)[off])


def test_fewer_tokens_than_inputs_take_jitter():
    gate, x = case()
    few = x[: HIDDEN // 3]
    factors = factorise(gate, few.T @ few, HIDDEN // 3)
    assert factors.jitter > 0
    assert output_error(gate, few, factors) < 1e-2 * np.linalg.norm(gate @ few.T)
    root, jitter = cholesky(np.zeros((3, 3)) + 1.0)
    assert jitter > 0
    np.testing.assert_allclose(root @ root.T, np.ones((3, 3)), atol=1e-6)


@pytest.mark.parametrize("rank", [0, HIDDEN + 1])
def test_rank_outside(rank):
    with pytest.raises(ValueError, match=f"rank {rank}, expected 1 to {HIDDEN}"):
        factorise(case()[0], None, rank)
