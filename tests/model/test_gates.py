"""Thresholds and weights in the host's memory."""

from __future__ import annotations

import numpy as np
import pytest

from spqt_ti.model.gates import GatePlan, Gates

INPUTS = np.array([32, 16, 32, 48], np.int32)


@pytest.fixture
def gates() -> Gates:
    plan = GatePlan.plan(2, 48)
    return Gates(plan, INPUTS, np.zeros(plan.vectors * 16, np.float32))


def test_masked(gates: Gates) -> None:
    """Above the threshold alone; weighted where the site has weights, and in no other."""
    x = np.array([[1.0, -2.0, 3.0, -4.0] * 4], np.float32)
    gates.thresholds[:] = 2
    gates.weigh(1, "o", np.tile(np.array([3, 1, 0, 1], np.float32), 4))
    np.testing.assert_array_equal(gates.masked(0, 1, x), [[0, 0, 3, -4] * 4])
    np.testing.assert_array_equal(gates.masked(1, 1, x), [[1, 0, 0, -4] * 4])


def test_clear_takes_weights_off(gates: Gates) -> None:
    """A policy without weights after one with them: they do not stay."""
    x = np.full((1, 16), 3, np.float32)
    gates.weigh(1, "o", np.zeros(16, np.float32))
    gates.clear()
    assert not gates.thresholds.any()
    gates.thresholds[:] = 2
    np.testing.assert_array_equal(gates.masked(1, 1, x), x)


def test_weights_of_another_shape(gates: Gates) -> None:
    with pytest.raises(ValueError, match=r"weights of down have shape \(32,\), expected \(48,\)"):
        gates.weigh(0, "down", np.ones(32, np.float32))
