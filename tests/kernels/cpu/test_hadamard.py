"""The fast transform against the dense matrix that it stands for, in float64: sizes K * 2^m of models and odd ones."""

import numpy as np
import pytest
from device_vectors import download, upload

from spqt_ti.backend import start, ti
from spqt_ti.kernels.cpu.hadamard import Runs, combine_runs, transform_runs
from spqt_ti.kernels.cpu.vectors import array_of, f32x16
from spqt_ti.kernels.cpu.workers import share_start
from spqt_ti.model.hadamard import ONLINE_RUN, Passes, Transform

WORKERS = 3  # more than runs, where there are one or two


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    start("cpu")


@ti.kernel
def transform(a: array_of(f32x16), factors: array_of(f32x16), x: ti.i32, target: ti.i32, order: ti.i32, levels: ti.i32):
    for _ in range(1):
        runs = ti.static(Runs(order, levels, 1))
        for worker in range(WORKERS):
            transform_runs(a, x, runs, share_start(order, worker, WORKERS), share_start(order, worker + 1, WORKERS))
        vectors = order << levels
        for worker in range(WORKERS):
            first, last = share_start(vectors, worker, WORKERS), share_start(vectors, worker + 1, WORKERS)
            combine_runs(a, x, target, factors, runs, first, last)


# 16: one vector; 160 of tests' models; 1536 = 12 * 128, 576 = 36 * 16, 8192 = 8 * 1024; 736 = 23 * 32, no Hadamard.
@pytest.mark.parametrize("size", [16, 160, 576, 736, 1536, 8192, 11008, 14336])
def test_fast_is_dense(size) -> None:
    passes = Passes.of(Transform.of(size, ONLINE_RUN))
    vectors, levels = size // 16, (passes.run // 16).bit_length() - 1
    rng = np.random.default_rng(size)
    x = rng.standard_normal(size).astype(np.float32)
    a = np.full((2 * vectors + 3, 16), 7, np.float32)
    a[1 : 1 + vectors] = x.reshape(-1, 16)
    factor = passes.factor().reshape(-1)
    factor = np.concatenate([np.full(16, 9, np.float32), factor, np.zeros(-factor.size % 16, np.float32)])
    device = upload(a)
    transform(device, upload(factor.reshape(-1, 16)), 1, vectors + 2, passes.order, levels)
    got = download(device).reshape(-1, 16)
    # An orthogonal transform in f32: sums of 16, of up to 64, of up to 344 values.
    expected = Transform.of(size, ONLINE_RUN).apply(x.astype(np.float64))
    np.testing.assert_allclose(got[vectors + 2 : 2 * vectors + 2].reshape(-1), expected, rtol=0, atol=3e-6)
    for untouched in (0, vectors + 1, 2 * vectors + 2):
        np.testing.assert_array_equal(got[untouched], 7)
