"""A model that turns the input of down when it is computed, on every engine, against float64."""

from __future__ import annotations

import functools

import gap_thresholds
import llama_float64
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti import api
from spqt_ti.backend import requested
from spqt_ti.container import Container
from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import PolicyError
from spqt_ti.model.predictors import NeuronPredictor
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, Site, realised_sparsity

# 320 = 20 * 16 has runs of one vector, 64 is one run.
CONFIG = tiny_models.tiny_config(intermediate_size=320, intermediate_sizes=(320, 64))
TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261]
# Kernels of their own, for a minute on lavapipe: there with -m slow, and tests/kernels/simt/test_hadamard.py always.
pytestmark = [pytest.mark.any_backend] + ([] if requested() == "cpu" else [pytest.mark.slow])


@functools.cache
def container() -> Container:
    """In Q8_0: near its source."""
    config = CONFIG
    folder = tiny_containers.folder() / "online"
    source = tiny_models.write_huggingface(folder / "source", config, tiny_models.random_weights(config))
    if requested() == "cpu":
        return quantize(source, folder / "model", scheme="q8_0", rotate=("residual", "down"), progress=False)
    return api.quantize_elsewhere(source, folder / "model", scheme="q8_0", rotate="residual,down")


@functools.cache
def model() -> Llama:
    return Llama(container(), threads=tiny_containers.THREADS, context=64, exact=True)


def logits(thresholds: np.ndarray | None = None) -> np.ndarray:
    """f64 [tokens, vocab] of the stored weights, with the transform in f64; `thresholds` are of the turned inputs."""
    mask = None
    if thresholds is not None:
        given = thresholds.copy()
        mask = lambda layer, site, x: np.where(np.abs(x) > given[layer, SITES.index(site)], x, 0)  # noqa: E731
    return llama_float64.forward(container().config, dict(container().weights()), TOKENS, mask)


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_logits() -> None:
    """Prefill and decode; the source's up to the rounding to 8 bits."""
    assert container().config.rotates_down
    assert [one["kind"] for one in container().transformations] == ["rotation", "online_rotation"]
    llama, expected = model(), logits()
    assert_close(llama.prefill(TOKENS, "all"), expected)
    llama.reset()
    assert_close(np.stack([llama.decode(token).copy() for token in TOKENS]), expected)
    source = llama_float64.forward(CONFIG, tiny_models.random_weights(CONFIG), TOKENS)
    assert np.abs(expected - source).std() < 0.03 * source.std()


def test_sparse() -> None:
    """Thresholds of down are of what its matrix sees: the turned inputs, of which none is zero."""
    llama = model()
    assert gap_thresholds.open_thresholds(llama, TOKENS) > 1e-6
    expected = logits(llama.thresholds)
    assert_close(llama.prefill(TOKENS, "all", masked=True), expected)
    llama.reset()
    assert_close(np.stack([llama.decode(token).copy() for token in TOKENS]), expected)
    assert 0.3 < realised_sparsity(llama.config, llama.active) < 0.7
    assert 0 < llama.active[0, Site.DOWN] < 320
    llama.selectors.clear()


def test_neuron_predictors_are_refused() -> None:
    predictor = NeuronPredictor(
        np.zeros((8, 192), np.float32), np.zeros((320, 8), np.float32), np.zeros(320, np.float32)
    )
    with pytest.raises(PolicyError, match="this model turns it: quantise without --rotate down"):
        model().set_predictors({0: predictor})
