"""The decoders of all schemes in both layouts: GEMV and product for many tokens against float64 on the dequantised
weights. What does not depend on the scheme is tested on Q4_K (test_gemv, test_matmul).
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import scheme_matrices
from q4_k_matrices import Matrix

from spqt_ti.errors import QuantizationError
from spqt_ti.formats.scheme import Scheme
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.kernels.simt.gemv import ZigzagGemv
from spqt_ti.kernels.simt.matmul_driver import Matmul
from spqt_ti.kernels.simt.products import words_of
from spqt_ti.kernels.simt.row_gemv import RowGemv
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.schemes import decoder_of
from spqt_ti.kernels.simt.zigzag import ZigzagWords

NEW = [SCHEMES[name] for name in ("q8_0", "q6_k", "q5_k", "q3_k", "q2_k")]


@pytest.fixture(params=NEW, ids=str)
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def assert_product(y: np.ndarray, matrix: Matrix, x: np.ndarray) -> None:
    assert y.shape == (len(matrix.weights),)
    assert (np.abs(y - matrix.weights @ x.astype(np.float64)) <= matrix.tolerance(x)).all()


@functools.cache
def integer_gemv(scheme: Scheme) -> tuple[Matrix, ZigzagGemv]:
    matrix = scheme_matrices.integer_matrix(300, 301, "zigzag", scheme)
    return matrix, ZigzagGemv(matrix.data, ZigzagWords(300, 301, scheme))


# Last bands of 33 and 130 rows. Few shapes, because each is a kernel to compile.
@pytest.mark.parametrize("shape", [(33, 7), (386, 130)], ids=str)
def test_zigzag(scheme: Scheme, shape: tuple[int, int]) -> None:
    matrix = scheme_matrices.random_matrix(*shape, "zigzag", scheme)
    gemv, x = ZigzagGemv(matrix.data, ZigzagWords(*shape, scheme)), normal(shape[1])
    assert_product(gemv(x), matrix, x)
    active = np.flatnonzero(np.abs(x) > 0.5).astype(np.int32)
    assert_product(gemv(x, active), matrix, np.where(np.abs(x) > 0.5, x, np.float32(0)))


def test_every_weight_in_its_place(scheme: Scheme) -> None:
    matrix, gemv = integer_gemv(scheme)
    ones = np.ones(301, np.float32)
    for column in (0, 1, 7, 150, 300):
        np.testing.assert_array_equal(gemv(ones, np.array([column], np.int32)), matrix.weights[:, column])


def test_copies_of_a_matrix() -> None:
    scheme = SCHEMES["q6_k"]
    matrix, x = scheme_matrices.random_matrix(300, 301, "zigzag", scheme), normal(301)
    gemv = ZigzagGemv(matrix.data, ZigzagWords(300, 301, scheme), copies=2)
    np.testing.assert_array_equal(gemv.run(gemv.launch(copy=1)), np.zeros(300))
    expected = gemv(x)
    np.testing.assert_array_equal(gemv.run(gemv.launch(copy=1)), expected)


def test_row(scheme: Scheme) -> None:
    shape = (33, 300)
    matrix, x = scheme_matrices.random_matrix(*shape, "row", scheme), normal(shape[1])
    assert_product(RowGemv(matrix.data, RowWords(*shape, scheme))(x), matrix, x)
    naive = RowGemv(matrix.data, RowWords(*shape, scheme), skips=True)
    assert_product(naive(x, 0.6745), matrix, np.where(np.abs(x) > 0.6745, x, np.float32(0)))


@pytest.mark.parametrize(
    ("name", "layout"),
    [("q4_k", "row"), *((scheme.name, layout) for layout in ("row", "zigzag") for scheme in NEW)],
)
def test_many_tokens(name: str, layout: str) -> None:
    """Dense, and masked with weights of the inputs."""
    scheme, rows, cols = SCHEMES[name], 300, 290
    matrix, x = scheme_matrices.random_matrix(rows, cols, layout, scheme), normal(37, cols)
    multiply = Matmul(matrix.data, words_of(rows, cols, scheme, layout), 64)
    weights = np.random.default_rng(0).choice(np.float32([0, 0.5, 1, 3]), cols)
    kept = np.where(np.abs(x) * weights > np.float32(0.6), x, np.float32(0))
    for inputs, arguments in ((x, ()), (kept, (0.6, weights))):
        for row, token in zip(multiply(x, *arguments), inputs, strict=True):
            assert_product(row, matrix, token)


def test_nothing_is_padded() -> None:
    """Of whole bands the device's bytes are the stored ones, but for the last 16, and for two in each of Q3_K's 110."""
    for scheme in SCHEMES.values():
        shape, superblocks = ZigzagWords(512, 264, scheme), 512 * 264 // scheme.values
        stored = superblocks * (scheme.bytes + (2 if scheme.name == "q3_k" else 0))
        assert 16 * (shape.quants + shape.headers) == stored


def test_unknown() -> None:
    with pytest.raises(QuantizationError, match=r"Q1_K weights have no GPU kernels; .*: .*q4_k, .*q6_k, q8_0"):
        decoder_of(dataclasses.replace(SCHEMES["q6_k"], name="q1_k"))
    with pytest.raises(QuantizationError, match="unknown layout 'diagonal'"):
        words_of(1, 1, SCHEMES["q8_0"], "diagonal")
