"""GPTQ on zigzag columns: its identity, its invariants and its errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.convert.gptq import factored, loss, quantize_columns
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k, q8_0
from spqt_ti.formats.scheme import Scheme


def column_quantizer(scheme: Scheme):
    return lambda column: layouts.quantize_matrix(column, "zigzag", scheme)


def problem(rows: int, cols: int, tokens: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights f32 [rows, cols] and the H of correlated inputs, some of them large."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, cols)) @ (np.eye(cols) + 0.3 * rng.standard_normal((cols, cols)))
    x = mixed * rng.choice([0.1, 1.0, 10.0], cols)
    return rng.standard_normal((rows, cols)).astype(np.float32), x.T @ x / tokens


def restored(data: np.ndarray, w: np.ndarray, scheme: Scheme) -> np.ndarray:
    return layouts.dequantize_matrix(data, *w.shape, "zigzag", scheme)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("scheme", [q4_k.SCHEME, q8_0.SCHEME], ids=str)
@pytest.mark.parametrize("shape", [(300, 7), (256, 70), (33, 1)], ids=str)
def test_a_diagonal_h_is_round_to_nearest(shape, scheme, ordered) -> None:
    w, _ = problem(*shape, tokens=4)
    h = np.diag(np.random.default_rng(1).uniform(0.1, 9, shape[1]))
    data = quantize_columns(w, factored(h, 0.02, ordered), scheme, column_quantizer(scheme))
    np.testing.assert_array_equal(data, layouts.quantize_matrix(w, "zigzag", scheme))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(300, 70), (64, 150)], ids=str)
def test_loss_is_below_round_to_nearests(shape, seed) -> None:
    w, h = problem(*shape, tokens=400, seed=seed)
    scheme = q4_k.SCHEME
    data = quantize_columns(w, factored(h, 0.02), scheme, column_quantizer(scheme))
    nearest = layouts.quantize_matrix(w, "zigzag", scheme)
    assert loss(restored(data, w, scheme) - w, h) < 0.8 * loss(restored(nearest, w, scheme) - w, h)


def test_equals_the_form_with_the_inverse() -> None:
    """The usual form: a column's error, times a row of the inverse's Cholesky factor, is taken off the rest."""
    w, h = problem(64, 90, tokens=300)
    factor, scheme = factored(h, 0.02), q8_0.SCHEME
    targets: list[np.ndarray] = []

    def quantize(column: np.ndarray) -> np.ndarray:
        targets.append(column[:, 0].copy())
        return layouts.quantize_matrix(column, "zigzag", scheme)

    quantize_columns(w, factor, scheme, quantize)
    a = h[np.ix_(factor.order, factor.order)] + 0.02 * np.diag(h).mean() * np.eye(90)
    upper = np.linalg.cholesky(np.linalg.inv(a)).T
    rest = w[:, factor.order].astype(np.float64)
    for j in range(90):
        target = rest[:, j].astype(np.float32)
        np.testing.assert_allclose(targets[j], rest[:, j], rtol=0, atol=1e-5)
        q = restored(layouts.quantize_matrix(targets[j][:, None], "zigzag", scheme), target[:, None], scheme)[:, 0]
        rest[:, j + 1 :] -= np.outer((rest[:, j] - q) / upper[j, j], upper[j, j + 1 :])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 70), st.integers(0, 1000))
def test_every_column_is_in_its_place(rows, cols, seed) -> None:
    """With steps far below the weights, the columns are theirs whatever the order."""
    w, h = problem(rows, cols, tokens=cols + 5, seed=seed)
    data = quantize_columns(w, factored(h, 1.0), q8_0.SCHEME, column_quantizer(q8_0.SCHEME))
    assert np.abs(restored(data, w, q8_0.SCHEME) - w).max() < 0.5


def test_refuses_what_it_cannot_factor() -> None:
    with pytest.raises(QuantizationError, match="do not span"):
        factored(-np.eye(3), 0.02)
    with pytest.raises(QuantizationError, match="NaN"):
        factored(np.full((2, 2), np.nan), 0.02)


def test_a_singular_h_is_damped() -> None:
    x = np.ones((5, 3))
    assert np.isfinite(factored(x.T @ x, 0.02).weights).all()
    assert not factored(np.zeros((3, 3)), 0.02).weights.any()
