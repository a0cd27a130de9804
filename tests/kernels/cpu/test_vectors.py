"""Lane arithmetic: sums and maxima of 16 lanes, and the exponential that Taichi has not."""

import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.kernels.cpu.vectors import array_of, exp_lanes, f32x16, lane_max, lane_sum, value, vectors_for


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@ti.kernel
def sums_and_maxima(a: array_of(f32x16), n: ti.i32, sums: array_of(f32x16), maxima: array_of(f32x16)):
    for i in range(n):
        sums[i >> 4][i & 15] = lane_sum(a[i])
        maxima[i >> 4][i & 15] = lane_max(a[i])


@ti.kernel
def exponentials(a: array_of(f32x16), n: ti.i32, out: array_of(f32x16)):
    for i in range(n):
        out[i] = exp_lanes(a[i])


@ti.kernel
def values_backwards(a: array_of(f32x16), n: ti.i32, out: array_of(f32x16)):
    for i in range(n):
        out[i >> 4][i & 15] = value(a, n - 1 - i)


def run_sums_and_maxima(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(a)
    sums, maxima = upload(np.zeros(n)), upload(np.zeros(n))
    sums_and_maxima(upload(a), n, sums, maxima)
    return download(sums)[:n], download(maxima)[:n]


def run_exponentials(x: np.ndarray) -> np.ndarray:
    out = upload(np.zeros(x.size))
    exponentials(upload(x), vectors_for(x.size), out)
    return download(out)[: x.size]


@pytest.mark.parametrize(("values", "vectors"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (576, 36), (577, 37)])
def test_vectors_for(values, vectors) -> None:
    assert vectors_for(values) == vectors


def test_value() -> None:
    a, out = np.arange(100, dtype=np.float32), upload(np.zeros(100))
    values_backwards(upload(a), 100, out)
    np.testing.assert_array_equal(download(out)[:100], a[::-1])


def test_lane_sum() -> None:
    a = np.random.default_rng(0).standard_normal((300, 16), dtype=np.float32)
    sums, _ = run_sums_and_maxima(a)
    # A tree of four levels rounds four times: 4 * 2^-24 of the sum of magnitudes.
    assert (np.abs(sums - a.astype(np.float64).sum(axis=1)) <= 2.0**-22 * np.abs(a).sum(axis=1)).all()


def test_lane_sum_uses_every_lane_once() -> None:
    powers = 2.0 ** np.arange(16)  # sums of them are exact, and tell which lanes are in
    np.testing.assert_array_equal(run_sums_and_maxima(np.diag(powers))[0], powers)
    assert run_sums_and_maxima(powers[None])[0] == [65535]


def test_lane_max_in_every_lane() -> None:
    a = -1 - np.abs(np.random.default_rng(0).standard_normal((16, 16)))
    a[np.arange(16), np.arange(16)] = -0.5
    np.testing.assert_array_equal(run_sums_and_maxima(a)[1], -0.5)


def test_exponential_within_its_bound() -> None:
    x = np.concatenate([np.linspace(-87, 88, 40_000), np.linspace(-1, 1, 10_001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(run_exponentials(x) / exact - 1)
    # The series: 2.3e-7. Rounding x log2(e), and log2(e) itself: (6e-8 + 1.3e-8) |x|.
    assert (error <= 3e-7 + 8e-8 * np.abs(x)).all()


def test_exponential_of_zero_is_one() -> None:
    np.testing.assert_array_equal(run_exponentials(np.zeros(16)), 1)


def test_exponential_is_clamped() -> None:
    """Masked scores come in as -3e38; what comes out must stay finite."""
    ends = run_exponentials(np.array([-87, 88]))
    beyond = run_exponentials(np.array([-87.5, -1000, -3e38, -np.inf, 88.5, 1000, 3e38, np.inf]))
    np.testing.assert_array_equal(beyond, np.repeat(ends, 4))
    assert np.isfinite(ends).all()
    assert (ends > 0).all()
