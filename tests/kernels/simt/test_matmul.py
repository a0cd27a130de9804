"""The product for many tokens on GPUs, dense and masked, against float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from q4_k_matrices import Matrix, random_matrix

from spqt_ti.kernels.simt.matmul_driver import Matmul
from spqt_ti.kernels.simt.zigzag import ZigzagWords

TOKENS = 64


@functools.cache
def case(rows: int, cols: int) -> tuple[Matrix, Matmul]:
    matrix = random_matrix(rows, cols, "zigzag")
    return matrix, Matmul(matrix.data, ZigzagWords(rows, cols), TOKENS)


def check(shape: tuple[int, int], x: np.ndarray, masked: np.ndarray, *mask) -> None:
    """`masked`: the x that counts. Tolerance as for a GEMV."""
    matrix, multiply = case(*shape)
    y = multiply(x, *mask)
    assert y.shape == (len(x), shape[0])
    for token, row in zip(masked, y, strict=True):
        assert (np.abs(row - matrix.weights @ token.astype(np.float64)) <= matrix.tolerance(token)).all()


@pytest.mark.parametrize("tokens", [1, 31, 33, 64])
@pytest.mark.parametrize("shape", [(33, 7), (300, 40)], ids=str)
def test_against_float64(shape: tuple[int, int], tokens: int) -> None:
    x = np.random.default_rng(tokens).standard_normal((tokens, shape[1]), dtype=np.float32)
    check(shape, x, x)


@pytest.mark.parametrize("weighted", [False, True])
def test_masked(weighted: bool) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((33, 40), dtype=np.float32)
    weights = generator.choice(np.float32([0, 0.5, 1, 3]), 40) if weighted else None
    scores = np.abs(x) * weights if weighted else np.abs(x)
    threshold = np.float32(0.6)
    check((300, 40), x, np.where(scores > threshold, x, np.float32(0)), float(threshold), weights)
