"""The fast transform against the dense matrix that it stands for, and sizes that have none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import QuantizationError
from spqt_ti.model.hadamard import Transform, paley, prime_power


def sylvester(n: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    return matrix


def dense(transform: Transform) -> np.ndarray:
    rest = transform.size // transform.order
    return np.kron(transform.factor(), sylvester(rest) / np.sqrt(rest))


@pytest.mark.parametrize("size", [1, 2, 9, 18, 48, 64, 80, 192, 576, 896, 1504])
def test_fast_is_dense(size) -> None:
    transform, x = Transform.of(size), np.random.default_rng(0).standard_normal((2, 3, size))
    np.testing.assert_allclose(transform.apply(x), x @ dense(transform), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700))
def test_every_transform_is_orthogonal(size) -> None:
    try:
        q = Transform.of(size).apply(np.eye(size))
    except QuantizationError:
        return
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-12)
    largest = np.abs(q).max() * np.sqrt(size)
    assert largest < np.sqrt(2) + 1e-9 if Transform.of(size).construction == "cosine" else largest < 1 + 1e-9


# 12, 20, 60 = q + 1; 28 and 344 of fields of 27 and 343; 36 = 2 (17 + 1); 52 = 2 (25 + 1) of a field of 25.
@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 52, 60, 344])
def test_paley(order) -> None:
    matrix = paley(order)
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize(
    ("size", "expected"),
    [(576, "paley 36 * 16"), (11008, "paley 344 * 32"), (14336, "paley 28 * 512"), (4096, "sylvester 1 * 4096"),
     (9, "cosine 9 * 1"), (80, "paley 20 * 4")],
)  # fmt: skip
def test_sizes_of_models(size, expected) -> None:
    assert str(Transform.of(size)) == expected


def test_a_size_without_one() -> None:
    with pytest.raises(QuantizationError, match=r"32288 = 32 \* 1009 has no Hadamard transform"):
        Transform.of(32288)
    with pytest.raises(ValueError, match="order 92"):
        paley(92)


def test_prime_powers() -> None:
    assert [n for n in range(1, 33) if prime_power(n)] == [
        2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 19, 23, 25, 27, 29, 31, 32
    ]  # fmt: skip
    assert prime_power(343) == (7, 3)
