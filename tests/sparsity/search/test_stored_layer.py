"""The NumPy layer is the model's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_containers

from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.search.scores import threshold_mask
from spqt_ti.sparsity.search.stored_layer import StoredLayer, calibration_threads, relative_error, unmasked

TOKENS = np.random.default_rng(7).integers(0, 300, 400).tolist()


def embedded(case: str, tokens: list[int]) -> np.ndarray:
    return tiny_containers.container(case).dequantize("model.embed_tokens")[tokens][None]


@pytest.mark.parametrize("case", ["gqa", "wide_heads", "biases", "llama3_rope", "mistral", "qwen2", "relu2"])
def test_layer_reads_what_the_model_reads(case: str) -> None:
    case = tiny_containers.model_with(case)
    model, seen = tiny_containers.llama(case), {}
    model.reset()
    model.selectors.clear()
    tokens = TOKENS[:48]
    model.prefill(tokens, "none", observer=lambda layer, site, x: seen.__setitem__((layer, site), x.copy()))
    x = embedded(case, tokens)
    for layer in range(2):
        trace = StoredLayer.load(tiny_containers.container(case), layer).run(x, unmasked)
        for site in SITES:
            got, expected = trace.inputs[site][0], seen[layer, site]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        x = trace.output


@pytest.mark.parametrize("site", SITES)
def test_reusing_what_comes_before_changes_nothing(site: str) -> None:
    stored, x = StoredLayer.load(tiny_containers.container("gqa"), 0), embedded("gqa", TOKENS[:20])
    first = np.full(4, 0.3, np.float32)
    changed = first.copy()
    changed[SITES.index(site)] = 0.8
    reused = stored.run(x, threshold_mask(changed), site, stored.run(x, threshold_mask(first)))
    fresh = stored.run(x, threshold_mask(changed))
    np.testing.assert_array_equal(reused.output, fresh.output)


def test_error_is_relative_to_each_token() -> None:
    dense = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    output = dense.copy()
    output[1, 2] *= 1.5
    assert relative_error(dense, dense) == 0
    assert relative_error(output, dense) == pytest.approx(0.25 / 6, rel=1e-5)
    sizes = np.array([[1, 10, 1000], [3, 0.1, 7]], np.float32)[..., None]
    assert relative_error(output * sizes, dense * sizes) == pytest.approx(0.25 / 6, rel=1e-5)


def test_blas_threads_of_small_and_large_models() -> None:
    small = tiny_containers.container("gqa").config
    large = dataclasses.replace(small, hidden_size=4096, intermediate_size=14336)
    assert (calibration_threads(small, 8), calibration_threads(large, 8)) == (1, 8)
