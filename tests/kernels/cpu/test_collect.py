"""The active list is exactly {i : |x_i| > threshold}, ascending."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spqt_ti.backend import start
from spqt_ti.kernels.cpu import collect as module
from spqt_ti.kernels.cpu import native
from spqt_ti.kernels.cpu.collect import collect_active

INF, NAN = np.float32(np.inf), np.float32(np.nan)
MAX = np.finfo(np.float32).max


@pytest.fixture(scope="module", autouse=True, params=["vnni", "plain"])
def _collector(request: pytest.FixtureRequest):
    """Each way of collecting, on CPUs that have both: the plain one is what other machines run."""
    start("cpu")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(native, "load_vnni", lambda: None)
            kernel = module.make_collect_kernel.__wrapped__()
            patch.setattr(module, "make_collect_kernel", lambda: kernel)
        elif not native.available("x86_64_vnni"):
            pytest.skip("this CPU has no AVX-512 VNNI, or SPQT_NATIVE leaves it out")
        yield


def check(x: np.ndarray, threshold: float) -> np.ndarray:
    active = collect_active(x, threshold)
    assert active.dtype == np.int32
    np.testing.assert_array_equal(active, np.flatnonzero(np.abs(x) > np.float32(threshold)))
    return active


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 32, 33, 576, 1023, 1024, 1025, 1536, 14336])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6745, 3.0])
def test_sizes(size, threshold) -> None:
    check(np.random.default_rng(size).standard_normal(size, dtype=np.float32), threshold)


@pytest.mark.parametrize("size", [1, 16, 33, 576])
def test_none_and_all(size) -> None:
    x = np.random.default_rng(0).uniform(1, 2, size).astype(np.float32)
    assert check(x, 2.0).size == 0
    assert check(-x, 0.5).size == size
    assert check(0 * x, 0.0).size == 0


def test_empty() -> None:
    assert collect_active(np.zeros(0, np.float32), 0.0).size == 0


def test_equal_to_the_threshold_is_inactive() -> None:
    t = np.float32(0.1)
    near = [np.nextafter(t, np.float32(0)), t, np.nextafter(t, INF)]
    x = np.array(near + [-v for v in near], np.float32)
    np.testing.assert_array_equal(check(x, float(t)), [2, 5])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.0, [2, 3, 5, 6, 7, 8]), (1.0, [2, 3, 7, 8]), (float(MAX), [2, 3]), (np.inf, [])],
)
def test_special_values(threshold, expected) -> None:
    x = np.array([NAN, -0.0, INF, -INF, 0.0, 1.0, -1.0, MAX, -MAX, -NAN], np.float32)
    np.testing.assert_array_equal(check(x, threshold), expected)


@pytest.mark.parametrize("threshold", [-1.0, -np.inf, np.nan])
def test_thresholds_that_are_none(threshold) -> None:
    with pytest.raises(ValueError, match="threshold"):
        collect_active(np.zeros(3, np.float32), threshold)


# Without denormals: worker threads flush them to zero, the caller's does not.
floats = st.floats(width=32, allow_subnormal=False)
small = st.sampled_from([np.float32(v) for v in (0.0, -0.0, 0.25, -0.25, 0.5, -0.5, NAN, INF, -INF)])


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, st.integers(0, 70), elements=st.one_of(floats, small)),
    st.one_of(st.floats(0, width=32, allow_subnormal=False), st.sampled_from([0.0, 0.25, 0.5])),
)
def test_any_values(x, threshold) -> None:
    check(x, threshold)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_a_threshold_out_of_the_values(size, quantile, seed) -> None:
    """As calibration picks it: the threshold is itself one of the |x_i|."""
    x = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
    threshold = float(np.quantile(np.abs(x), quantile, method="lower"))
    assert check(x, threshold).size == size - 1 - np.searchsorted(np.sort(np.abs(x)), np.float32(threshold))


def check_weighted(x: np.ndarray, weights: np.ndarray, threshold: float) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.flatnonzero(np.abs(x) * weights > np.float32(threshold))
    np.testing.assert_array_equal(collect_active(x, threshold, weights), expected)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 70), st.floats(0, 4, width=32, allow_subnormal=False))
def test_weighted(data, size, threshold) -> None:
    normal = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda v: v == 0 or abs(v) > 1e-15)
    x = data.draw(arrays(np.float32, size, elements=st.one_of(normal, small)))
    weights = data.draw(arrays(np.float32, size, elements=st.sampled_from([0.0, 0.5, 1.0, 3.0, 1e9])))
    check_weighted(x, weights, threshold)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600), st.floats(0, 1), st.integers(-8, 8), st.integers(0, 2**32 - 1))
def test_a_common_factor_of_weights_changes_nothing(size, quantile, power, seed) -> None:
    generator = np.random.default_rng(seed)
    x, weights = generator.standard_normal((2, size), dtype=np.float32)
    scores = np.abs(x) * np.abs(weights)
    threshold, factor = np.quantile(scores, quantile, method="lower"), np.float32(2.0**power)
    np.testing.assert_array_equal(
        collect_active(x, float(threshold), np.abs(weights)),
        collect_active(x, float(threshold * factor), np.abs(weights) * factor),
    )


def test_weights_of_another_shape() -> None:
    with pytest.raises(ValueError, match="weights"):
        collect_active(np.zeros(3, np.float32), 1.0, np.ones(4, np.float32))
