"""A model whose layers have feed-forward networks of different widths, on every engine, against float64."""

from __future__ import annotations

import functools

import gap_thresholds
import llama_float64
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.backend import requested
from spqt_ti.container import Container
from spqt_ti.errors import CheckpointError
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, Site, inputs_per_layer, inputs_skipped, realised_sparsity

TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261]
# 288 takes more bands and segments of a list than 64.
WIDTHS = (64, 288)
# On a GPU only with -m slow: each width compiles kernels of its own, for more than a minute on lavapipe.
pytestmark = [] if requested() == "cpu" else [pytest.mark.slow]


@functools.cache
def container() -> Container:
    """Made as any other: widths are part of the configuration."""
    config = tiny_models.tiny_config(intermediate_size=max(WIDTHS), intermediate_sizes=WIDTHS)
    folder = tiny_containers.folder() / "widths"
    source = tiny_models.write_huggingface(folder / "source", config, tiny_models.random_weights(config))
    return tiny_containers.quantize(source, folder / "model")


@functools.cache
def model() -> Llama:
    return Llama(container(), threads=tiny_containers.THREADS, context=64, exact=True)


def logits(thresholds: np.ndarray | None = None) -> np.ndarray:
    mask = None
    if thresholds is not None:
        given = thresholds.copy()
        mask = lambda layer, site, x: np.where(np.abs(x) > given[layer, SITES.index(site)], x, 0)  # noqa: E731
    return llama_float64.forward(container().config, dict(container().weights()), TOKENS, mask)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.any_backend
def test_logits() -> None:
    """Dense and sparse; prefill and decode."""
    llama = model()
    expected = logits()
    assert_close(llama.prefill(TOKENS, "all"), expected)
    llama.reset()
    assert_close(np.stack([llama.decode(token).copy() for token in TOKENS]), expected)
    np.testing.assert_array_equal(llama.active, inputs_per_layer(llama.config))
    assert gap_thresholds.open_thresholds(llama, TOKENS) > 1e-6
    expected = logits(llama.thresholds)
    llama.reset()
    assert_close(llama.prefill(TOKENS, "all", masked=True), expected)
    llama.reset()
    assert_close(np.stack([llama.decode(token).copy() for token in TOKENS]), expected)
    assert 0.3 < realised_sparsity(llama.config, llama.active) < 0.7
    llama.selectors.clear()


@pytest.mark.any_backend
def test_weights_of_inputs_and_bytes() -> None:
    """A selector's weights and what a token reads go by the layer's own width."""
    llama = model()
    with pytest.raises(ValueError, match=r"shape \(288,\), expected \(64,\)"):
        llama.selectors.weigh(0, "down", np.ones(288, np.float32))
    llama.selectors.weigh(1, "down", np.ones(288, np.float32))
    llama.selectors.clear()
    columns = llama.traffic.columns
    assert columns[1, Site.GATE_UP] > 2 * columns[0, Site.GATE_UP]
    assert columns[1, Site.DOWN] == columns[0, Site.DOWN]


def test_shares() -> None:
    config = tiny_models.tiny_config(intermediate_size=288, intermediate_sizes=WIDTHS)
    active = inputs_per_layer(config).astype(float)
    assert realised_sparsity(config, active) == 0
    active[0, Site.DOWN] = 0
    matrices = [shape for name, shape in config.tensor_shapes().items() if ".layers." in name and len(shape) == 2]
    total = sum(rows * cols for rows, cols in matrices)
    assert realised_sparsity(config, active) == pytest.approx(64 * 192 / total)
    assert inputs_skipped(config, active)[Site.DOWN] == pytest.approx(64 / sum(WIDTHS))


def test_configuration() -> None:
    config = tiny_models.tiny_config(intermediate_sizes=(160, 32))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.widths() == (160, 32)
    assert config.tensor_shapes()["model.layers.1.mlp.down_proj.weight"] == (192, 32)
    assert tiny_models.tiny_config(intermediate_sizes=(160, 160)) == tiny_models.tiny_config()
    for widths, problem in (((160,), "1 entries"), ((160, 0), "positive whole"), ((96, 32), "the largest of")):
        with pytest.raises(CheckpointError, match=problem):
            tiny_models.tiny_config(intermediate_sizes=widths)
    for given in (7, [160], [160, "x"], [160, 32.5]):
        with pytest.raises(CheckpointError, match="intermediate_sizes is"):
            ModelConfig.from_dict(config.to_dict() | {"intermediate_sizes": given})
