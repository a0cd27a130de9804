"""SVD predictors of tiny random ReGLU models: what they say of tokens that they were not made from."""

import dataclasses
import logging
import shutil

import numpy as np
import pytest
import tiny_containers

from spqt_ti.errors import PolicyError
from spqt_ti.model.reference import Layer, unmasked
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import svd
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.predictors.settings import Bias, Importance, PredictorSettings
from spqt_ti.sparsity.search.stored_layer import StoredLayer

MODEL = next(name for name in tiny_containers.MODELS if "relu" in name.split("+"))
TOKENS = np.random.default_rng(1).integers(0, 320, 2048).tolist()
UNSEEN = np.random.default_rng(2).integers(0, 320, (1, 400))


def calibrate(tokens=TOKENS, checkpoint=None, model=MODEL, **settings):
    return svd.calibrate(tiny_containers.container(model), "text", tokens, PredictorSettings(**settings), checkpoint)


def unseen_inputs() -> tuple[Layer, np.ndarray, np.ndarray]:
    """The first layer, its FFN inputs on other tokens, and gate's outputs."""
    container = tiny_containers.container(MODEL)
    layer = StoredLayer.load(container, 0)
    trace = layer.run(container.dequantize("model.embed_tokens")[UNSEEN], unmasked)
    x = trace.inputs["gate_up"]
    gate, _ = np.split(x @ layer.matrices["gate_up"].T + layer.biases.get("gate_up", np.float32(0)), 2, axis=-1)
    return layer, x, gate


def recall(policy: SparsityPolicy) -> float:
    _, x, gate = unseen_inputs()
    return float(policy.predictors[0].predict(x)[gate > 0].mean())


def test_whole_rank_without_bias_is_the_gate():
    policy = calibrate(rank=192, bias=Bias.NONE).policy(0.5)
    _, x, gate = unseen_inputs()
    sure = np.abs(gate) > 1e-2 * np.abs(gate).max()  # beyond what f16 rounds
    np.testing.assert_array_equal(policy.predictors[0].predict(x)[sure], (gate > 0)[sure])


def test_recall_falls_as_sparsity_rises_and_density_is_what_was_asked_for():
    calibration = calibrate(rank=24)
    policies = [calibration.policy(s) for s in (0.2, 0.5, 0.8)]
    recalls = [recall(policy) for policy in policies]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[0] > 0.9 > recalls[2]
    for policy in policies:
        for layer, figures in enumerate(policy.calibration["layers"]):
            less = 0.1 if layer < 2 else 0.0
            target = max(0, policy.sparsity - less) * (1 - figures["true_density"])
            assert 1 - figures["predicted_density"] == pytest.approx(target, abs=2e-3)
    _, x, _ = unseen_inputs()
    density = policies[1].predictors[0].predict(x).mean()
    assert density == pytest.approx(policies[1].calibration["layers"][0]["predicted_density"], abs=0.05)


def test_whitening_keeps_recall():
    """At the same predicted density: random tokens, so by little."""
    with_it, without = (calibrate(rank=12, whiten=w).policy(0.6) for w in (True, False))
    assert recall(with_it) >= recall(without) - 0.02


@pytest.mark.parametrize("bias", [Bias.GLOBAL, Bias.NEURON])
@pytest.mark.parametrize("importance", list(Importance))
def test_ablations(bias, importance):
    policy = calibrate(rank=24, bias=bias, importance=importance).policy(0.6)
    assert (policy.calibration["bias"], policy.calibration["importance"]) == (bias.value, importance.value)
    assert 0.5 < recall(policy) < 1
    figures = policy.calibration["layers"][0]
    assert 1 - figures["predicted_density"] == pytest.approx(0.5 * (1 - figures["true_density"]), abs=5e-3)
    assert len(set(policy.predictors[0].bias.tolist())) == (1 if bias is Bias.GLOBAL else 160)


def test_same_file_again_and_after_an_interruption(tmp_path):
    identity = {"model": "m"}
    whole = calibrate(checkpoint=Checkpoint(tmp_path / "a", identity)).policy(0.5)
    again = calibrate(checkpoint=Checkpoint(tmp_path / "a", identity)).policy(0.5)
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a/svd-12-whitened-full-0.npz", tmp_path / "b")  # as an interruption leaves it
    resumed = calibrate(checkpoint=Checkpoint(tmp_path / "b", identity)).policy(0.5)
    whole.save(tmp_path / "policy.json")
    expected = (tmp_path / "policy.json").read_bytes(), (tmp_path / "policy.safetensors").read_bytes()
    for policy in (again, resumed, calibrate().policy(0.5)):
        policy.save(tmp_path / "policy.json")
        assert ((tmp_path / "policy.json").read_bytes(), (tmp_path / "policy.safetensors").read_bytes()) == expected
    calibrate(checkpoint=Checkpoint(tmp_path / "b", identity), rank=24)  # has files of its own
    assert len(list((tmp_path / "b").iterdir())) == 4


def test_fatrelu_counts_from_its_threshold():
    """Bias none: on is where gate is above the threshold."""
    name = next(name for name in tiny_containers.MODELS if "bamboo" in name.split("+"))
    container = tiny_containers.container(name)
    predictor = calibrate(model=name, rank=container.config.hidden_size, bias=Bias.NONE).policy(0.5).predictors[0]
    np.testing.assert_array_equal(predictor.bias, -np.float32(container.config.hidden_act_param))


def test_thresholds_of_attention_in_the_same_policy():
    made = calibrate().policy(0.5)
    both = svd.with_attention(made, np.full((2, 4), 0.25, np.float32), 0.4)
    np.testing.assert_array_equal(both.thresholds, np.tile(np.float32([0.25, 0.25, 0, 0]), (2, 1)))
    assert both.predictors is made.predictors
    assert both.calibration["attention"] == 0.4


def test_little_text(caplog):
    with caplog.at_level(logging.WARNING):
        policy = calibrate(tokens=TOKENS[:300]).policy(0.5)
    assert "150 tokens do not span the 192 inputs of a layer" in caplog.text
    assert policy.calibration["jitter"] > 0
    assert calibrate().policy(0.5).calibration["jitter"] == 0


def test_a_pruned_model_is_refused():
    container = tiny_containers.container(MODEL)
    narrower = dataclasses.replace(container.config, intermediate_sizes=(container.config.intermediate_size, 32))
    with pytest.raises(PolicyError, match="this one is pruned"):
        svd.calibrate(dataclasses.replace(container, config=narrower), "text", TOKENS)


def test_refused():
    with pytest.raises(PolicyError, match="this one has silu"):
        calibrate(model="gqa")
    with pytest.raises(PolicyError, match="rank 193 for predictors, expected 1 to 192"):
        calibrate(rank=193)
    with pytest.raises(PolicyError, match="sparsity must be between 0 and 1"):
        calibrate().policy(1.5)


def test_another_model_refuses_the_policy():
    policy = calibrate().policy(0.5)
    policy.check(policy.model, 2)
    with pytest.raises(PolicyError, match="the policy was made for model"):
        policy.check(policy.model[::-1], 2)
