"""The zigzag GEMV of each scheme beside Q4_K (which test_gemv.py of the folder above has), against float64."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from q4_k_matrices import Matrix
from scheme_matrices import random_matrix

from spqt_ti.backend import available_threads, start
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import schemes
from spqt_ti.formats.layout import dequantize_matrix, quantize_matrix
from spqt_ti.kernels.cpu.gemv import ZigzagGemv
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.kernels.cpu.tile_sums import uses_integers
from spqt_ti.kernels.cpu.zigzag import ZigzagShape

SHAPES = [(1, 1), (1, 300), (33, 7), (256, 256), (257, 257), (300, 1), (576, 300), (4096, 3), (6000, 40), (8500, 70)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
NAMES = [name for name in schemes.SCHEMES if name != "q4_k"]
ONE_OF_EACH_KIND = ("q5_k", "q6_k")  # with minima, and without
names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


def matrix_of(name: str, rows: int, cols: int, seed: int = 0) -> Matrix:
    return random_matrix(rows, cols, "zigzag", schemes.find(name), seed)


def gemv_of(name: str, matrix: Matrix, panel_bands: int = 32, exact: bool = True) -> ZigzagGemv:
    shape = ZigzagShape(*matrix.weights.shape, panel_bands)
    return ZigzagGemv(matrix.data, shape, min(2, available_threads()), exact, decoder_of(schemes.find(name)))


def normal(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def choose(cols: int, count: int, seed: int = 2) -> np.ndarray:
    """`count` of `cols` columns, i32, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(cols)[:count]).astype(np.int32)


def check(name: str, matrix: Matrix, x: np.ndarray, active: np.ndarray | None = None, panel_bands: int = 32) -> None:
    y = gemv_of(name, matrix, panel_bands)(x, active)
    kept = x if active is None else np.where(np.isin(np.arange(x.size), active), x, np.float32(0))
    assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= matrix.tolerance(kept)).all()


def test_every_scheme_has_a_decoder() -> None:
    assert all(decoder_of(scheme).scheme == scheme for scheme in schemes.SCHEMES.values())
    unknown = dataclasses.replace(schemes.find("q6_k"), name="q1_k")
    with pytest.raises(QuantizationError, match=r"no kernels for Q1_K; it has them for: .*q4_k.*, q6_k"):
        decoder_of(unknown)


@names
@shapes
@pytest.mark.parametrize("density", [0.0, 0.35, 1.0])
def test_equals_float64(name, shape, density) -> None:
    matrix = matrix_of(name, *shape)
    check(name, matrix, normal(shape[1]), choose(shape[1], round(density * shape[1])))


@names
@pytest.mark.parametrize("panel_bands", [1, 4, 16])
def test_any_panels(name, panel_bands) -> None:
    matrix = matrix_of(name, 4600, 19)
    check(name, matrix, normal(19), panel_bands=panel_bands)


@names
@pytest.mark.parametrize("rows", [r for n in range(8) for r in (32 * n + 1, 32 * n + 32)])
def test_every_last_band(name, rows) -> None:
    """Completed with zeros at load; alone and after a full band."""
    for full in (0, 256):
        check(name, matrix_of(name, full + rows, 37, seed=rows), normal(37))


@names
def test_every_weight_in_its_place(name) -> None:
    matrix = matrix_of(name, 300, 40)
    gemv = gemv_of(name, matrix)
    ones = np.ones(40, np.float32)
    columns = [gemv(ones, np.array([j], np.int32)) for j in range(40)]
    expected = dequantize_matrix(matrix.data, 300, 40, "zigzag", schemes.find(name))
    np.testing.assert_array_equal(np.stack(columns, axis=1), expected)


@pytest.mark.skipif(not uses_integers(exact=False), reason="this CPU has no AVX2, or SPQT_NATIVE forbids it")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "q8_0"])
@pytest.mark.parametrize("shape", [(33, 7), (300, 40), (4600, 19), (576, 300)], ids=str)
def test_16_bits(name, shape) -> None:
    """Each weight in its place, columns one by one; errors of whole products, rms 0.2e-5 to 2.6e-5 of y, with room."""
    matrix, x = matrix_of(name, *shape), normal(shape[1])
    gemv = gemv_of(name, matrix, exact=False)
    ones = np.ones(shape[1], np.float32)
    for column in choose(shape[1], 5):
        y = gemv(ones, np.array([column], np.int32))
        np.testing.assert_allclose(y, matrix.weights[:, column], atol=1e-6 * matrix.parts[:, column].max())
    for kept in (np.arange(shape[1], dtype=np.int32), choose(shape[1], shape[1] // 2)):
        expected = matrix.weights[:, kept] @ x[kept].astype(np.float64)
        assert np.sqrt(np.mean((gemv(x, kept) - expected) ** 2)) < 5e-5 * np.sqrt(np.mean(expected**2))


@names
def test_quantised_weights(name) -> None:
    """Relative error on normal weights: Q2_K 30 %, Q3_K 15 %, Q5_K 3.6 %, Q6_K 1.8 %, Q8_0 0.6 %."""
    w = np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32)
    x, scheme = normal(64), schemes.find(name)
    y = ZigzagGemv(quantize_matrix(w, "zigzag", scheme), ZigzagShape(300, 64), 1, decoder=decoder_of(scheme))(x)
    error = y - w.astype(np.float64) @ x
    assert np.sqrt(np.mean(error**2)) < {"q2_k": 0.35, "q3_k": 0.2, "q5_k": 0.05, "q6_k": 0.025, "q8_0": 0.008}[
        name
    ] * np.linalg.norm(x)


@names
def test_inactive_inputs_are_not_read(name) -> None:
    matrix, x, active = matrix_of(name, 300, 40), normal(40), choose(40, 20)
    expected = gemv_of(name, matrix)(x, active)
    x[np.setdiff1d(np.arange(40), active)] = np.nan
    np.testing.assert_array_equal(gemv_of(name, matrix)(x, active), expected)


@names
def test_wrong_size(name) -> None:
    matrix = matrix_of(name, 300, 40)
    with pytest.raises(QuantizationError, match=f"{name.upper()} matrix"):
        ZigzagGemv(matrix.data[:-1], ZigzagShape(300, 40), decoder=decoder_of(schemes.find(name)))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES), st.sampled_from([1, 33, 300, 576]) | st.integers(1, 600), st.integers(1, 200),
    st.sampled_from([0.0, 1.0]) | st.floats(0, 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_shape_and_density(name, rows, cols, density, seed) -> None:
    active = choose(cols, round(density * cols), seed)
    check(name, matrix_of(name, rows, cols, seed=seed), normal(cols, seed), active)


def _print_products() -> None:
    """Run by test_without_native_helpers in a process of its own."""
    start("cpu")
    for name in ONE_OF_EACH_KIND:
        sys.stdout.buffer.write(gemv_of(name, matrix_of(name, 700, 301))(normal(301), choose(301, 150)).tobytes())


def test_without_native_helpers() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import runpy; runpy.run_path({__file__!r})['_print_products']()"
    env = {**os.environ, "SPQT_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    products = np.frombuffer(done.stdout, np.float32).reshape(len(ONE_OF_EACH_KIND), 700)
    kept = np.where(np.isin(np.arange(301), choose(301, 150)), normal(301), np.float32(0))
    for name, y in zip(ONE_OF_EACH_KIND, products, strict=True):
        matrix = matrix_of(name, 700, 301)
        assert (np.abs(y - matrix.weights @ kept.astype(np.float64)) <= matrix.tolerance(kept)).all()
