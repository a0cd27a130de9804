"""Sums, maxima and scans of a group of threads."""

import numpy as np
import pytest

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.groups import exclusive_scan, group_best, group_max, group_sum, log2, zero

THREADS = 256
I32, F32 = ti.types.ndarray(dtype=ti.i32, ndim=1), ti.types.ndarray(dtype=ti.f32, ndim=1)


@ti.kernel
def scan(values: I32, totals: I32):
    ti.loop_config(block_dim=THREADS)
    for i in range(2 * THREADS):  # two groups
        shared = ti.simt.block.SharedArray((THREADS,), ti.i32)
        t = i & (THREADS - 1)
        ti.simt.block.sync()
        shared[t] = values[i]
        totals[i] = exclusive_scan(shared, t, THREADS)
        values[i] = shared[t]


@ti.kernel
def reduce(values: F32, sums: F32, highest: F32, places: I32):
    ti.loop_config(block_dim=THREADS)
    for i in range(2 * THREADS):
        shared = ti.simt.block.SharedArray((THREADS,), ti.f32)
        rows = ti.simt.block.SharedArray((THREADS,), ti.i32)
        t = i & (THREADS - 1)
        sums[i] = group_sum(shared, t, values[i], THREADS)
        highest[i] = group_max(shared, t, values[i], THREADS)
        ti.simt.block.sync()
        shared[t] = values[i]
        rows[t] = t
        group_best(shared, rows, t, THREADS)
        places[i] = rows[zero(t)]


def on_device(values: np.ndarray) -> ti.Ndarray:
    array = ti.ndarray(ti.f32 if values.dtype == np.float32 else ti.i32, values.shape)
    array.from_numpy(values)
    return array


def test_exclusive_scan() -> None:
    values = np.random.default_rng(0).integers(0, 9, (2, THREADS)).astype(np.int32)
    device, totals = on_device(values.reshape(-1)), on_device(np.zeros(2 * THREADS, np.int32))
    scan(device, totals)
    np.testing.assert_array_equal(device.to_numpy().reshape(2, -1), values.cumsum(axis=1) - values)
    np.testing.assert_array_equal(totals.to_numpy().reshape(2, -1), values.sum(axis=1, keepdims=True).repeat(256, 1))


def test_reductions() -> None:
    """Of integers, so that sums are exact, with many equal ones: the first of the highest counts."""
    values = np.random.default_rng(0).integers(-30, 9, (2, THREADS)).astype(np.float32)
    sums, highest = (on_device(np.zeros(2 * THREADS, np.float32)) for _ in range(2))
    places = on_device(np.zeros(2 * THREADS, np.int32))
    reduce(on_device(values.reshape(-1)), sums, highest, places)
    for device, expected in ((sums, values.sum(1)), (highest, values.max(1)), (places, values.argmax(1))):
        np.testing.assert_array_equal(device.to_numpy().reshape(2, -1), expected[:, None].repeat(256, 1))


@pytest.mark.parametrize("value", [0, 3, -4])
def test_log2_of_other_than_powers_of_two(value: int) -> None:
    assert [log2(1 << n) for n in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="not a power of two"):
        log2(value)
