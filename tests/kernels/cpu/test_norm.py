"""RMSNorm, put together as the model does, against float64."""

import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.kernels.cpu.norm import scaled_copy, square_sum
from spqt_ti.kernels.cpu.vectors import array_of, f32x16


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@ti.kernel
def norm(
    a: array_of(f32x16), source: ti.i32, vectors: ti.i32, weights: array_of(f32x16), weight: ti.i32, target: ti.i32
):
    for _ in range(1):
        factor = 1.0 / ti.sqrt(square_sum(a, source, source + vectors) / (vectors * 16) + 1e-5)
        scaled_copy(a, source, weights, weight, factor, target, vectors)


@ti.kernel
def sum_range(a: array_of(f32x16), first: ti.i32, last: ti.i32) -> ti.f32:
    total = 0.0
    ti.loop_config(serialize=True)
    for _ in range(1):
        total = square_sum(a, first, last)
    return total


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("vectors", [1, 2, 12, 36, 100])
def test_norm(vectors, scale) -> None:
    rng = np.random.default_rng(vectors)
    a = (scale * rng.standard_normal((vectors + 1 + vectors + 1, 16))).astype(np.float32)
    weights = rng.standard_normal((vectors + 2, 16), dtype=np.float32)
    device = upload(a)
    norm(device, 1, vectors, upload(weights), 2, 1 + vectors)
    x = a[1 : 1 + vectors].astype(np.float64)
    expected = x / np.sqrt((x * x).mean() + 1e-5) * weights[2:]
    got = download(device).reshape(-1, 16)
    # Roundings: the sum of squares (a tree below a chain, at most 1e-6), root and reciprocal, two products.
    np.testing.assert_allclose(got[1 + vectors : 1 + 2 * vectors], expected, rtol=1e-6)
    np.testing.assert_array_equal(got[: 1 + vectors], a[: 1 + vectors])
    np.testing.assert_array_equal(got[1 + 2 * vectors :], a[1 + 2 * vectors :])


@pytest.mark.parametrize(("first", "last"), [(0, 0), (3, 3), (0, 1), (2, 5), (0, 7)])
def test_sum_over_a_range(first, last) -> None:
    """Workers sum shares of a vector: integers, so that a value lost or counted twice shows."""
    a = np.random.default_rng(0).integers(-9, 10, (7, 16)).astype(np.float32)
    assert sum_range(upload(a), first, last) == (a[first:last] ** 2).sum()
