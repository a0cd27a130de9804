"""The NumPy model against the float64 forward pass, and its scores against the runner's."""

from __future__ import annotations

import llama_float64
import numpy as np
import pytest
import tiny_containers

from spqt_ti.evaluation.float_model import FloatModel
from spqt_ti.evaluation.perplexity import compare, evaluate, windows

TOKENS = np.random.default_rng(5).integers(0, 300, 64).tolist()


def float_model(case: str, layout: str = "zigzag") -> FloatModel:
    container = tiny_containers.container(case, layout)
    return FloatModel(container.config, dict(container.weights()))


@pytest.mark.parametrize(
    ("case", "layout"),
    [("gqa", "zigzag"), ("gqa", "row"), ("mha+tied", "zigzag"), ("narrow_heads+biases", "zigzag")],
)
def test_logits(case: str, layout: str) -> None:
    container = tiny_containers.container(case, layout)
    expected = llama_float64.forward(container.config, dict(container.weights()), TOKENS)
    got = float_model(case, layout).logits(TOKENS, 5)
    np.testing.assert_allclose(got, expected[5:], rtol=0, atol=1e-5 * np.abs(expected).max())


def test_scores_are_the_runners() -> None:
    model, parts = float_model("gqa"), windows(TOKENS, 32)
    (ours,) = compare(parts, model.second_half, [model.second_half])
    (runner,) = evaluate(tiny_containers.llama("gqa"), parts, [None])
    assert ours.row(0).kl_mean == pytest.approx(0, abs=1e-6)
    assert ours.row(0).realised_sparsity == 0
    np.testing.assert_allclose(np.concatenate(ours.nll), np.concatenate(runner.nll), atol=1e-4)


def test_scores_of_another_model() -> None:
    zigzag, row = float_model("gqa"), float_model("gqa", "row")
    (score,) = compare(windows(TOKENS, 32), zigzag.second_half, [row.second_half])
    assert 1e-4 < score.row(0).kl_mean < 1
