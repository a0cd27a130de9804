"""Perplexity against the float64 forward pass, and masked evaluation against real decoding."""

from __future__ import annotations

import llama_float64
import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import GenerationError
from spqt_ti.evaluation.perplexity import Scores, compare, evaluate, mean_and_error, windows
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.policy import SparsityPolicy

CONTEXT = 32
TOKENS = np.random.default_rng(5).integers(0, 300, 3 * CONTEXT).tolist()
PARTS = windows(TOKENS, CONTEXT)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def policy() -> SparsityPolicy:
    model = tiny_containers.llama("gqa")
    model.selectors.clear()
    return uniform.calibrate(model, "model", "text", TOKENS).policy(0.5)


def test_dense_is_the_reference() -> None:
    container = tiny_containers.container("gqa")
    (score,) = evaluate(tiny_containers.llama("gqa"), PARTS, [None])
    expected = []
    for part in PARTS:
        logits = log_softmax(llama_float64.forward(container.config, dict(container.weights()), part))
        expected += [-logits[i, part[i + 1]] for i in range(CONTEXT // 2, CONTEXT - 1)]
    row = score.row(0.0)
    assert row.tokens == len(expected) == 3 * (CONTEXT // 2 - 1)
    assert row.perplexity == pytest.approx(np.exp(np.mean(expected)), rel=1e-4)
    error = np.std(expected, ddof=1) / len(expected) ** 0.5
    assert row.perplexity_se == pytest.approx(row.perplexity * error, rel=1e-3)
    assert (row.kl_mean, row.top1) == (pytest.approx(0, abs=1e-6), 1.0)


def test_sparse_is_real_decoding(policy: SparsityPolicy) -> None:
    """Every token through the decode step; the windows are short enough that rounding flips no input near its
    threshold for most tokens, which is what the median says.
    """
    model = tiny_containers.llama("gqa")
    (score,) = evaluate(model, PARTS[:1], [policy])
    policy.apply(model)
    model.reset()
    decoded = log_softmax(np.stack([model.decode(token).copy() for token in PARTS[0]]))
    half = CONTEXT // 2
    expected = [-decoded[i, PARTS[0][i + 1]] for i in range(half, CONTEXT - 1)]
    assert np.median(np.abs(score.nll[0] - expected)) < 1e-3
    assert np.mean(score.nll[0]) == pytest.approx(np.mean(expected), abs=0.05)
    model.selectors.clear()


def test_what_sparsity_costs(policy: SparsityPolicy) -> None:
    first, second = evaluate(tiny_containers.llama("gqa"), PARTS, [None, policy])
    dense, sparse = first.row(0.0), second.row(0.5)
    assert dense.realised_sparsity == 0
    assert sparse.realised_sparsity == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(second.active.share_skipped, 0.5, atol=0.1)
    assert 0 < sparse.kl_mean < sparse.kl_p99
    assert sparse.top1 < 1


def test_the_model_is_dense_afterwards(policy: SparsityPolicy) -> None:
    model = tiny_containers.llama("gqa")
    evaluate(model, PARTS[:1], [policy])
    assert not model.thresholds.any()
    assert model.position == 0


def test_scores_by_hand() -> None:
    """Two words, of which dense gives 1/2 and 1/2, the other 3/4 and 1/4: KL(dense || other) = ln(2 / sqrt(3))."""
    window = [0, 0, 0, 0, 0, 0, 0, 1]
    even, uneven = np.log([[0.5, 0.5]] * 3), np.log([[0.75, 0.25]] * 3)
    (score,) = compare([window], lambda _: even, [lambda _: uneven])
    np.testing.assert_allclose(score.kl[0], np.log(2 / 3**0.5), rtol=1e-6)
    np.testing.assert_allclose(score.nll[0], -np.log([0.75, 0.75, 0.25]), rtol=1e-6)
    assert score.same[0].tolist() == [True] * 3  # the first of equals is the likeliest


def test_row_by_hand() -> None:
    kl = np.linspace(0, 1, 101)
    same = np.arange(101) < 25
    row = Scores([np.full(101, np.log(7))], [kl[:50], kl[50:]], [same]).row(0.3)
    assert (row.sparsity, row.tokens, row.realised_sparsity) == (0.3, 101, 0.0)
    assert (row.kl_mean, row.kl_p99, row.top1) == pytest.approx((0.5, 0.99, 25 / 101))
    assert (row.perplexity, row.perplexity_se) == pytest.approx((7, 0), abs=1e-9)


def test_windows() -> None:
    assert windows(list(range(25)), 8) == [list(range(i, i + 8)) for i in (0, 8, 16)]
    assert len(windows(list(range(25)), 8, 2)) == 2
    assert windows(list(range(16)), 8, bos=[99])[1] == [99, *range(9, 16)]
    with pytest.raises(GenerationError, match="fewer than one window of 8"):
        windows([1] * 7, 8)
    with pytest.raises(GenerationError, match="context must be 8"):
        windows([1] * 70, 4)


def test_error_over_windows() -> None:
    assert mean_and_error([np.array([1.0, 3.0]), np.array([4.0, 4.0])]) == (3.0, 1.0)
