"""The level is moved until as much is skipped as was asked for; and samples of a text."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

from spqt_ti.model.sites import matrix_shapes
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.methods.wina import column_norms
from spqt_ti.sparsity.search import realise as realising
from spqt_ti.sparsity.search.realise import CLOSE, realise, realised
from spqt_ti.sparsity.search.sample import spread
from spqt_ti.sparsity.search.scores import thresholds_at

TOKENS = np.random.default_rng(7).integers(0, 300, 1000).tolist()
WINDOWS = spread(TOKENS, realising.WINDOWS, 64)  # the shared runner's context


@pytest.fixture(scope="module")
def tables() -> np.ndarray:
    tiny_containers.llama("gqa").selectors.clear()
    return uniform.calibrate(tiny_containers.llama("gqa"), "model", "text", TOKENS).quantiles


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_skips_what_was_asked_for(share: float, tables: np.ndarray) -> None:
    model = tiny_containers.llama("gqa")

    def thresholds(level: float) -> np.ndarray:
        return thresholds_at(tables, np.full((2, 4), level))

    level = realise(model, TOKENS, share, 0.9, thresholds, {})
    assert realised(model, WINDOWS, thresholds(level), {}) == pytest.approx(share, abs=CLOSE)
    assert not model.thresholds.any()


def test_counts_weights_not_inputs() -> None:
    """The first site alone, all of its inputs: its share of a layer's weights."""
    model, thresholds = tiny_containers.llama("gqa"), np.zeros((2, 4), np.float32)
    thresholds[:, 0] = 1e9
    sizes = np.array([shape.rows * shape.cols for shape in matrix_shapes(model.config).values()])
    # Without qkv attention is zero, and so are all inputs of o: they are read all the same, o runs dense.
    assert realised(model, WINDOWS, thresholds, {}) == pytest.approx(sizes[0] / sizes.sum())
    assert realised(model, WINDOWS, np.zeros((2, 4), np.float32), {}) == 0


def test_weights_count() -> None:
    model, weights = tiny_containers.llama("gqa"), column_norms(tiny_containers.container("gqa"))
    thresholds = np.full((2, 4), 0.3, np.float32)
    huge = {place: weight * np.float32(1e6) for place, weight in weights.items()}
    assert realised(model, WINDOWS, thresholds, huge) < 0.01 < realised(model, WINDOWS, thresholds, weights)


def test_nothing_to_skip() -> None:
    assert realise(tiny_containers.llama("gqa"), TOKENS, 0.0, 0.9, lambda level: np.zeros((2, 4)), {}) == 0


def test_what_cannot_be_reached_comes_as_near_as_it_can() -> None:
    """Thresholds that do not depend on the level: it ends, with a level in range."""
    fixed = np.full((2, 4), 0.1, np.float32)
    assert 0 <= realise(tiny_containers.llama("gqa"), TOKENS, 0.5, 0.9, lambda level: fixed, {}) <= 0.9


@pytest.mark.parametrize(("windows", "length"), [(4, 64), (16, 256), (1, 10), (5, 1000), (3, 2000)])
def test_spread(windows: int, length: int) -> None:
    found = spread(range(1000), windows, length)
    assert 1 <= len(found) <= windows
    assert {len(window) for window in found} == {min(length, 1000)}
    starts = [window[0] for window in found]
    assert starts == sorted(set(starts))
    assert starts[0] == 0


def test_spread_with_an_offset_takes_other_tokens() -> None:
    first, second = spread(range(1000), 4, 50), spread(range(1000), 4, 50, 0.5)
    assert not {t for window in first for t in window} & {t for window in second for t in window}
    assert second[-1][-1] < 1000
