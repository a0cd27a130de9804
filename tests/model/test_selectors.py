"""Thresholds and weights in the host's memory."""

from __future__ import annotations

import numpy as np
import pytest

from spqt_ti.model.selectors import SelectorMap, Selectors

INPUTS = np.array([32, 16, 32, 48], np.int32)


@pytest.fixture
def selectors() -> Selectors:
    selector_map = SelectorMap.of(2, 48)
    return Selectors(selector_map, INPUTS, np.zeros(selector_map.vectors * 16, np.float32))


def test_masked(selectors: Selectors) -> None:
    """Above the threshold alone; weighted where the site has weights, and in no other."""
    x = np.array([[1.0, -2.0, 3.0, -4.0] * 4], np.float32)
    selectors.thresholds[:] = 2
    selectors.weigh(1, "o", np.tile(np.array([3, 1, 0, 1], np.float32), 4))
    np.testing.assert_array_equal(selectors.masked(0, 1, x), [[0, 0, 3, -4] * 4])
    np.testing.assert_array_equal(selectors.masked(1, 1, x), [[1, 0, 0, -4] * 4])


def test_clear_takes_weights_off(selectors: Selectors) -> None:
    """A policy without weights after one with them: they do not stay."""
    x = np.full((1, 16), 3, np.float32)
    selectors.weigh(1, "o", np.zeros(16, np.float32))
    selectors.clear()
    assert not selectors.thresholds.any()
    selectors.thresholds[:] = 2
    np.testing.assert_array_equal(selectors.masked(1, 1, x), x)


def test_weights_of_another_shape(selectors: Selectors) -> None:
    with pytest.raises(ValueError, match=r"weights of down have shape \(32,\), expected \(48,\)"):
        selectors.weigh(0, "down", np.ones(32, np.float32))
