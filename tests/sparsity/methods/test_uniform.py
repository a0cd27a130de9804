"""Uniform sparsity: one table of quantiles serves every level, and its file is kept as good as new."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import SENTENCES, random_weights, tiny_config, write_huggingface

from spqt_ti.convert.quantize import quantize
from spqt_ti.errors import PolicyError
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES
from spqt_ti.sparsity.capture import Magnitudes
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.methods.uniform import LEVELS, Calibration

LAYERS = 2
# Another width at every layer and site, so that a mix-up shows.
INPUTS = np.random.default_rng(0).standard_normal((LAYERS, len(SITES), 40_000)).astype(np.float32)
INPUTS *= 2.0 ** np.arange(8, dtype=np.float32).reshape(LAYERS, len(SITES), 1)


def measured() -> Calibration:
    magnitudes = Magnitudes(LAYERS)
    for layer, site in np.ndindex(LAYERS, len(SITES)):
        magnitudes.observe(layer, SITES[site], INPUTS[layer, site])
    return Calibration("abc123", "ff", 200, magnitudes.quantiles(LEVELS))


CALIBRATION = measured()
levels = st.floats(0, uniform.MAX_SPARSITY)


def shares(sparsity: float) -> np.ndarray:
    """Share of the inputs, per layer and site, that a policy leaves out."""
    return (np.abs(INPUTS) <= CALIBRATION.policy(sparsity).thresholds[..., None]).mean(axis=-1)


# Policies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.01, 0.1, 0.255, 0.4, 0.5, 0.7, 0.93, 0.985, 0.99])
def test_the_asked_share_lies_below(sparsity):
    """Within what a bin of 1/256 holds: at most 0.2 % of a normal distribution."""
    np.testing.assert_allclose(shares(sparsity), sparsity, atol=0.002)


def test_zero_is_dense():
    assert not CALIBRATION.policy(0).thresholds.any()
    assert not CALIBRATION.policy(0.0).thresholds.any()


@given(levels, levels)
def test_monotone_in_the_level(one, other):
    low, high = sorted([one, other])
    assert (CALIBRATION.policy(low).thresholds <= CALIBRATION.policy(high).thresholds).all()


@pytest.mark.parametrize("index", [1, 50, 98, 99])
def test_a_level_of_the_table_is_the_table(index):
    thresholds = CALIBRATION.policy(LEVELS[index]).thresholds
    np.testing.assert_allclose(thresholds, CALIBRATION.quantiles[..., index], rtol=1e-6)


def test_between_two_levels_it_is_linear():
    expected = CALIBRATION.quantiles[..., 40] * 0.75 + CALIBRATION.quantiles[..., 41] * 0.25
    np.testing.assert_allclose(CALIBRATION.policy(0.4025).thresholds, expected, rtol=1e-6)


def test_a_policy_says_where_it_comes_from():
    policy = CALIBRATION.policy(0.4)
    assert (policy.method, policy.sparsity, policy.model) == ("uniform", 0.4, "abc123")
    assert policy.calibration == {"text_sha256": "ff", "tokens": 200}
    assert policy.thresholds.dtype == np.float32


@pytest.mark.parametrize("sparsity", [-0.01, 0.991, 1, 40, math.nan, math.inf])
def test_levels_out_of_range(sparsity):
    with pytest.raises(PolicyError, match=f"between 0 and 0.99, not {sparsity}"):
        CALIBRATION.policy(sparsity)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_comes_back(tmp_path):
    path = tmp_path / "calibration.json"
    CALIBRATION.save(path)
    read = Calibration.load(path)
    assert (read.model, read.text_sha256, read.tokens) == ("abc123", "ff", 200)
    assert read.quantiles.dtype == np.float32
    np.testing.assert_allclose(read.quantiles, CALIBRATION.quantiles, rtol=1e-6)
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


def test_saving_replaces_a_file(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text("old")
    CALIBRATION.save(path)
    assert Calibration.load(path).tokens == 200


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="disk full"):
        CALIBRATION.save(tmp_path / "calibration.json")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> dict:
    """What a saved file holds."""
    path = tmp_path_factory.mktemp("saved") / "calibration.json"
    CALIBRATION.save(path)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"text"', "{}", '{"format": 1}'], ids=lambda text: text or "empty"
)
def test_damaged_files_are_named(text, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=r"calibration\.json: not a calibration .* delete it"):
        Calibration.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"tokens": "many"},
        {"tokens": None},
        {"tokens": math.inf},
        {"quantiles": []},
        {"quantiles": None},
        {"quantiles": [[0.5] * 100]},
        {"quantiles": [[[0.5] * 99] * 4] * 2},
        {"quantiles": [[[0.5] * 100, [0.5]]]},
        {"quantiles": [[["x"] * 100] * 4]},
    ],
    ids=lambda change: str(change)[:30],
)
def test_wrong_fields_are_refused(change, fields, tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(fields | change))
    with pytest.raises(PolicyError, match=r"calibration\.json: not a calibration"):
        Calibration.load(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00binary"])
def test_missing_and_binary_files_are_named(content, tmp_path):
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyError, match=r"calibration\.json: not a calibration"):
        Calibration.load(path)


# On a model -----------------------------------------------------------------------------------------------------------

TOKENS = np.random.default_rng(3).integers(3, 300, 90).tolist()


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    folder = tmp_path_factory.mktemp("models")
    source = write_huggingface(folder / "source", tiny_config(), random_weights(tiny_config()))
    return Llama(quantize(source, folder / "quantized", progress=False), threads=1, context=64)


def test_a_model_gives_the_same_numbers_twice(llama):
    one, two = (uniform.calibrate(llama, "abc123", SENTENCES[0], TOKENS) for _ in range(2))
    assert one.quantiles.tobytes() == two.quantiles.tobytes()
    assert one.quantiles.shape == (2, len(SITES), len(LEVELS))
    assert (one.model, one.tokens) == ("abc123", 90)
    assert llama.position == 0  # nothing of the text is left in the cache


def test_calibrating_sees_what_the_sites_see(llama):
    """More tokens than the context: two windows of 64 and 26 tokens, each from its own start."""
    seen = {(layer, site): [] for layer in range(2) for site in SITES}
    for part in (TOKENS[:64], TOKENS[64:]):
        llama.reset()
        llama.prefill(part, "none", observer=lambda layer, site, x: seen[layer, site].append(np.abs(x).ravel()))
    found = uniform.calibrate(llama, "abc123", "", TOKENS).quantiles[..., 50]
    expected = [[np.median(np.concatenate(seen[layer, site])) for site in SITES] for layer in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1 / 128)


def test_a_masked_model_is_calibrated_densely(llama):
    """Thresholds in force must not change what is measured."""
    dense = uniform.calibrate(llama, "abc123", "", TOKENS).quantiles
    llama.thresholds[:] = 0.5
    try:
        masked = uniform.calibrate(llama, "abc123", "", TOKENS).quantiles
    finally:
        llama.thresholds[:] = 0
    np.testing.assert_array_equal(dense, masked)


def test_a_text_without_tokens(llama):
    with pytest.raises(PolicyError, match="no tokens"):
        uniform.calibrate(llama, "abc123", "", [])


def test_the_sample_is_long_enough_to_calibrate_on():
    assert len(uniform.sample_text().split()) > uniform.WINDOW
