"""Rotary position embedding against complex numbers in float64."""

import functools

import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.kernels.cpu.rope import rotate
from spqt_ti.kernels.cpu.vectors import array_of, f32x16
from spqt_ti.kernels.shared.rope import rope_table

HEAD_DIMS = [16, 48, 64, 80]  # halves of 8, 24, 32 and 40 values: not all of them whole vectors
CONTEXT = 64
POSITIONS = [0, 1, 15, 16, 17, CONTEXT - 1]
head_dims = pytest.mark.parametrize("head_dim", HEAD_DIMS)


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@functools.cache
def make_rotation(head_dim: int):
    @ti.kernel
    def rotation(a: array_of(f32x16), head: ti.i32, table: array_of(f32x16), row: ti.i32):
        for _ in range(1):
            rotate(a, head, table, row, head_dim // 2, head_dim // 2)

    return rotation


def frequencies(head_dim: int) -> np.ndarray:
    return 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)


def run(a: np.ndarray, head: int, head_dim: int, position: int) -> np.ndarray:
    """`a` after rotating the head that begins at value `head`; the table does not begin at its array's start."""
    table = np.concatenate([np.full(32, np.nan), rope_table(frequencies(head_dim), CONTEXT).reshape(-1)])
    device = upload(a)
    make_rotation(head_dim)(device, head, upload(table), 32 + position * head_dim)
    return download(device)[: a.size]


def rotated(x: np.ndarray, position: int) -> np.ndarray:
    """The pairs (x[d], x[d + half]) as complex numbers, turned by position * frequency."""
    half = x.size // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequencies(x.size))
    return np.concatenate([turned.real, turned.imag])


@head_dims
def test_table(head_dim) -> None:
    table = rope_table(frequencies(head_dim), 5000).astype(np.float64)
    turns = np.exp(1j * np.outer(np.arange(5000), frequencies(head_dim)))
    assert table.shape == (5000, head_dim)
    # Angles are float64, so late positions are as exact as early ones: half a unit in the last place of f32.
    np.testing.assert_allclose(table, np.concatenate([turns.real, turns.imag], axis=1), rtol=0, atol=2.0**-24)


@head_dims
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("head", [0, 2])
def test_rotation(head_dim, position, head) -> None:
    a = np.random.default_rng(head_dim).standard_normal(3 * head_dim).astype(np.float32)
    here = slice(head * head_dim, (head + 1) * head_dim)
    got = run(a, here.start, head_dim, position)
    # Two products, each of a rounded cosine or sine, and a sum: three roundings of values below 8.
    np.testing.assert_allclose(got[here], rotated(a[here].astype(np.float64), position), rtol=0, atol=1e-6)
    others = np.delete(np.arange(a.size), np.r_[here])
    np.testing.assert_array_equal(got[others], a[others])


@head_dims
def test_position_0_changes_nothing(head_dim) -> None:
    a = np.random.default_rng(0).standard_normal(head_dim).astype(np.float32)
    np.testing.assert_array_equal(run(a, 0, head_dim, 0), a)


def test_scores_depend_on_the_distance() -> None:
    q, k = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    scores = [run(q, 0, 64, p + 7).astype(np.float64) @ run(k, 0, 64, p) for p in (0, 9, 50)]
    np.testing.assert_allclose(scores, scores[0], rtol=0, atol=1e-5)
