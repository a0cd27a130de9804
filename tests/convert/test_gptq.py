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
from spqt_ti.formats.schemes import SCHEMES


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


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
@pytest.mark.parametrize("shape", [(300, 70), (33, 1)], ids=str)
def test_a_diagonal_h_is_round_to_nearest(shape, scheme) -> None:
    w, _ = problem(*shape, tokens=4)
    h = np.diag(np.random.default_rng(1).uniform(0.1, 9, shape[1]))
    expected = layouts.quantize_matrix(w, "zigzag", scheme)
    np.testing.assert_array_equal(quantize_columns(w, factored(h, 0.02), scheme, as_ggml=True), expected)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_diagonal_h_is_round_to_nearest_column_by_column(ordered) -> None:
    w, _ = problem(300, 7, tokens=4)
    h = np.diag(np.random.default_rng(1).uniform(0.1, 9, 7))
    data = quantize_columns(w, factored(h, 0.02, ordered), q4_k.SCHEME, column_quantizer(q4_k.SCHEME))
    np.testing.assert_array_equal(data, layouts.quantize_matrix(w, "zigzag", q4_k.SCHEME))


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_a_column_is_its_target_quantised(scheme) -> None:
    """In batches, several tiles of lanes and a cut superblock. Targets in float64, from what the bytes before lose."""
    w, h = problem(700, 130, tokens=300)
    factor = factored(h, 0.02)
    data = quantize_columns(w, factor, scheme, as_ggml=True)
    lost = (w - restored(data, w, scheme)).astype(np.float64)[:, factor.order]
    targets = np.empty_like(w)
    targets[:, factor.order] = w[:, factor.order] + lost @ factor.weights
    rounded = restored(layouts.quantize_matrix(targets, "zigzag", scheme), w, scheme)
    assert np.mean(rounded == restored(data, w, scheme)) > 0.9  # in f32 a sub-block may have another best fit
    assert np.mean(np.abs(targets - w)) > 0.3 * np.mean(np.abs(lost))


def test_what_the_kernel_leaves_is_quantised_by_numpy() -> None:
    """Values so small that the kernel would flush them: the batch with them goes column by column."""
    w, _ = problem(300, 70, tokens=4)
    w[:, 66] *= 1e-30
    for h in (np.diag(np.arange(70.0) + 1), np.eye(70) + np.diag(np.full(63, 0.4), 7) + np.diag(np.full(63, 0.4), -7)):
        factor = factored(h, 0.02, ordered=False)
        expected = quantize_columns(w, factor, q4_k.SCHEME, column_quantizer(q4_k.SCHEME))
        np.testing.assert_array_equal(quantize_columns(w, factor, q4_k.SCHEME, as_ggml=True), expected)


def test_refuses_infinity_in_a_batch() -> None:
    w, h = problem(33, 70, tokens=400)
    w[5, 7] = np.inf
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        quantize_columns(w, factored(h, 0.02), q4_k.SCHEME)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(300, 70), (64, 150)], ids=str)
def test_loss_is_below_round_to_nearests(shape, seed) -> None:
    w, h = problem(*shape, tokens=400, seed=seed)
    scheme = q4_k.SCHEME
    data = quantize_columns(w, factored(h, 0.02), scheme)
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
    data = quantize_columns(w, factored(h, 1.0), q8_0.SCHEME)
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
