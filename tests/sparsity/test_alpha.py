"""The search for alpha: its ends are TEAL and WINA, and what it chooses loses no more than they do."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.alpha import ALPHAS, column_weights, search, site_losses
from spqt_ti.sparsity.block import Block, unmasked
from spqt_ti.sparsity.wina import column_norms

TOKENS = np.random.default_rng(7).integers(0, 300, 40).tolist()


def block_and_trace():
    container = tiny_containers.container("gqa")
    block = Block.load(container, 1)
    return block, block.run(container.dequantize("model.embed_tokens")[TOKENS][None], unmasked)


def test_ends_of_the_grid() -> None:
    """alpha = 0 has no weights, as TEAL; alpha = 1 has WINA's."""
    block, norms = block_and_trace()[0], column_norms(tiny_containers.container("gqa"))
    for site in SITES:
        assert column_weights(block.matrices[site], 0.0) is None
        np.testing.assert_allclose(column_weights(block.matrices[site], 1.0), norms[1, site], rtol=1e-6)


def test_grid() -> None:
    assert ALPHAS[0] == 0
    assert 1.0 in ALPHAS
    assert ALPHAS[-1] == 1.5
    np.testing.assert_allclose(np.diff(ALPHAS), 0.1)


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_chosen_is_no_worse_than_teal_and_wina(sparsity: float) -> None:
    block, trace = block_and_trace()
    alphas = search(block, trace, sparsity)
    for best, losses in zip(alphas.best, alphas.losses, strict=True):
        chosen = losses[ALPHAS.index(best)]
        assert chosen == losses.min()
        assert chosen <= min(losses[0], losses[ALPHAS.index(1.0)])


def test_loss_is_what_the_mask_loses() -> None:
    block, trace = block_and_trace()
    matrix, x = block.matrices["o"].astype(np.float64), trace.inputs["o"][0].astype(np.float64)
    for alpha, loss in list(zip(ALPHAS, site_losses(block.matrices["o"], trace.inputs["o"], 0.5), strict=True))[::5]:
        scores = np.abs(x) * np.linalg.norm(matrix, axis=0) ** alpha
        kept = np.where(scores > np.median(scores), x, 0)
        lost, dense = x @ matrix.T - kept @ matrix.T, x @ matrix.T
        assert loss == pytest.approx(np.mean((lost**2).sum(1) / (dense**2).sum(1)), rel=2e-3)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_where_norms_matter_alpha_is_large(seed: int) -> None:
    """Orthogonal columns of very different norms, one token: its lost output is the sum of the skipped scores' squares,
    so 1 is best.
    """
    generator = np.random.default_rng(seed)
    matrix = np.linalg.qr(generator.standard_normal((24, 16)))[0] * np.exp(generator.uniform(-3, 3, 16))
    losses = site_losses(matrix.astype(np.float32), generator.standard_normal((1, 16)).astype(np.float32), 0.5)
    assert losses[ALPHAS.index(1.0)] <= losses.min() * (1 + 1e-5)
