"""The model that comes with the package, on text that it was not trained on: it is as sparse as it says, and predictors
made on one half leave its perplexity alone on the other.
"""

import functools

import numpy as np
import pytest
import tiny_containers

from spqt_ti.container import Container
from spqt_ti.evaluation.neurons import NeuronMask, bytes_per_token, score
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.reference import Reference
from spqt_ti.sources.registry import pull
from spqt_ti.sparsity.methods import svd, uniform
from spqt_ti.sparsity.predictors.settings import PredictorSettings


@functools.cache
def model() -> tuple[Container, list[list[int]]]:
    """Its container, and windows of 256 tokens of the package's sample text."""
    container = tiny_containers.quantize(pull("reglu-tiny"), tiny_containers.folder() / "reglu-tiny")
    ids = Tokenizer(container.tokenizer_json, container.config).encode(uniform.sample_text())
    return container, [ids[at : at + 256] for at in range(0, 8 * 256, 256)]


def reference() -> Reference:
    container, _ = model()
    return Reference(container.config, dict(container.weights()))


@functools.cache
def calibration() -> svd.SvdCalibration:
    container, windows = model()
    tokens = [token for window in windows[:6] for token in window]
    return svd.calibrate(container, "text", tokens, PredictorSettings(rank=64))


def test_most_neurons_are_off():
    """The trainer's own figures are in training.json: 27.5 and 91 % zeros on held-out speeches."""
    container, windows = model()
    mask = NeuronMask(reference().layers, calibration().policy(0.0).predictors)
    reference().logits(windows[6], 0, mask)
    on = [counts.figures()["true_density"] for counts in mask.counts.values()]
    assert container.config.has_exact_zeros
    assert np.mean(on) < 0.15
    assert max(on) < 0.35


def test_predictors_leave_perplexity_alone():
    _, windows = model()
    dense, logs = score(reference(), windows[6:], None, {})
    found, _ = score(reference(), windows[6:], logs, calibration().policy(0.5).predictors)
    assert dense.kl == [pytest.approx(0, abs=1e-6)] * 2
    assert found.perplexity == pytest.approx(dense.perplexity, rel=0.01)
    assert found.mean("recall") > 0.97
    assert found.mean("predicted_density") < 0.45


def test_a_mask_of_all_neurons_is_dense_and_of_none_is_no_ffn():
    """A false positive changes nothing: what is on is a subset."""
    _, windows = model()
    predictors = calibration().policy(0.5).predictors
    dense = reference().logits(windows[6][:32])
    for added, expected in ((np.inf, dense), (-np.inf, None)):
        some = {}
        for layer, p in predictors.items():
            some[layer] = type(p)(p.fc1, p.fc2, np.full_like(p.bias, np.copysign(np.float32(1e30), added)))
        got = reference().logits(windows[6][:32], 0, NeuronMask(reference().layers, some))
        none = reference().logits(windows[6][:32], 0, lambda _, site, x: np.zeros_like(x) if site == "down" else x)
        np.testing.assert_array_equal(got, dense if expected is not None else none)


def test_share_of_the_bytes_read():
    config = model()[0].config
    assert bytes_per_token(config, 1, 0, 0) == pytest.approx((256 + 768) / (3 * 256 * 768) * 8.5 / 4.5)
    assert bytes_per_token(config, 64, 1, 1) == pytest.approx(1 + 64 * bytes_per_token(config, 1, 0, 0))
    assert bytes_per_token(config, 1, 0.3, 0.1) < bytes_per_token(config, 1, 0.3, 0.1, "parallel")
