"""Rotated models compute what their sources do, in float64 and per component; what a container says of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from llama_float64 import forward

from spqt_ti import quantization
from spqt_ti.convert.quantize import open_source, quantize
from spqt_ti.convert.rotate import Rotation, parse_components, rotated
from spqt_ti.errors import CheckpointError, QuantizationError
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.reference import Reference

COMPONENTS = [("residual",), ("heads",), ("down",), ("residual", "heads"), ("residual", "heads", "down")]
OFFLINE = ("residual", "heads")


def source(config: ModelConfig) -> dict[str, np.ndarray]:
    weights = tiny_models.random_weights(config)
    return {name: values.astype(np.float64) for name, values in weights.items()}


@pytest.mark.parametrize("components", COMPONENTS, ids="+".join)
@pytest.mark.parametrize("case", ["gqa", "mha", "tied", "wide_heads", "biases", "mistral", "qwen2", "qwen3"])
def test_logits_are_the_sources(case, components) -> None:
    config = tiny_models.tiny_config(**tiny_models.CASES[case])
    weights = source(config)
    rotation = Rotation.of(config, components, seed=3)
    turned = {name: rotation.tensor(name, weights.__getitem__) for name in rotation.rotated_config.tensor_shapes()}
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, 40).tolist()
    expected = forward(config, weights, tokens)
    np.testing.assert_allclose(forward(rotation.rotated_config, turned, tokens), expected, rtol=0, atol=1e-9)
    changed = {name for name in weights if not np.array_equal(weights[name], turned[name])}
    assert ("model.layers.1.self_attn.o_proj.weight" in changed) == bool(set(OFFLINE) & set(components))
    assert ("model.layers.0.mlp.down_proj.weight" in changed) == bool({"residual", "down"} & set(components))
    assert ("model.layers.0.self_attn.v_proj.weight" in changed) == bool(set(OFFLINE) & set(components))
    assert rotation.rotated_config.rotates_down == ("down" in components)
    assert not any("q_norm" in name or "k_norm" in name for name in changed)


def test_a_size_without_a_transform_is_refused_at_once() -> None:
    config = tiny_models.tiny_config(hidden_size=32 * 1009)
    assert Rotation.of(config, ["heads"]).components == ("heads",)
    with pytest.raises(QuantizationError, match="no Hadamard transform here"):
        Rotation.of(config, ["heads", "residual"])


def test_components() -> None:
    assert parse_components("residual, heads") == ("residual", "heads")
    with pytest.raises(QuantizationError, match="unknown rotation 'qkv'; there are: residual, heads, down"):
        parse_components("qkv")


def test_down_that_cannot_turn_is_refused_at_once(tmp_path) -> None:
    bamboo = tiny_models.tiny_config(**tiny_models.CASES["bamboo"])
    with pytest.raises(QuantizationError, match="bamboo models: their activation is of up as well"):
        Rotation.of(bamboo, ["down"])
    prime = tiny_models.tiny_config(intermediate_size=32 * 1009)
    with pytest.raises(QuantizationError, match="leaves a power of two of 16 or more; leave out this rotation"):
        Rotation.of(prime, ["down"])
    with pytest.raises(CheckpointError, match="rotates_down: 32288 = 32"):
        replace(prime, rotates_down=True)
    turned = tiny_models.tiny_config(rotates_down=True)
    source = tiny_models.write_huggingface(tmp_path / "source", turned, tiny_models.random_weights(turned))
    with pytest.raises(CheckpointError, match="rotates_down is for quantised models"):
        open_source(source)


def test_signs_are_those_of_up() -> None:
    """Layers of different widths have transforms of their own."""
    config = tiny_models.tiny_config(intermediate_size=288, intermediate_sizes=(64, 288), mlp_bias=True)
    rotation, weights = Rotation.of(config, ["down"], seed=1), source(config)
    for layer, width in enumerate(config.widths()):
        name = f"model.layers.{layer}.mlp.up_proj"
        for kind in ("weight", "bias"):
            values = weights[f"{name}.{kind}"]
            found = rotation.tensor(f"{name}.{kind}", weights.__getitem__)
            np.testing.assert_array_equal((found.T * rotation.turn_down(layer).signs).T, values)
        assert rotation.turn_down(layer).transform.size == width
    turned = {name: rotation.tensor(name, weights.__getitem__) for name in rotation.rotated_config.tensor_shapes()}
    tokens = list(range(20))
    expected = forward(config, weights, tokens)
    np.testing.assert_allclose(forward(rotation.rotated_config, turned, tokens), expected, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_models.tiny_config(**tiny_models.CASES["tied"])
    path = tmp_path_factory.mktemp("rotate") / "tiny"
    return tiny_models.write_huggingface(path, config, tiny_models.random_weights(config))


def test_container(folder, tmp_path) -> None:
    """Its weights are the rotated ones, rounded; the head is no longer the embedding."""
    container = quantize(folder, tmp_path / "model", scheme="q8_0", rotate=("residual", "heads"), seed=5)
    assert container.transformations == (
        {
            "kind": "rotation",
            "seed": 5,
            "transforms": {"residual": "paley 12 * 16", "heads": "paley 12 * 4"},
        },
    )
    assert not container.config.tie_word_embeddings
    checkpoint = open_source(folder)
    turned, _ = rotated(checkpoint, ("residual", "heads"), 5)
    for name, values in container.weights():
        np.testing.assert_allclose(values, turned.read(name), rtol=0, atol=0.02 * np.abs(values).max(), err_msg=name)
    tokens = list(range(40))
    plain = Reference(checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names()}).logits(tokens)
    found = Reference(container.config, dict(container.weights())).logits(tokens)
    assert np.abs(found - plain).std() < 0.05 * plain.std()


def test_with_gptq(folder, tmp_path, monkeypatch) -> None:
    """H is that of the rotated model's inputs."""
    windows = np.random.default_rng(0).integers(0, 320, (1, 256)).tolist()
    monkeypatch.setattr(quantization, "_windows", lambda *_: windows)
    made = quantization.quantize_calibrated(
        folder, tmp_path / "model", scheme="q8_0", text="a text", rotate=["residual"], progress=False
    )
    assert [one["kind"] for one in made.transformations] == ["rotation", "gptq"]
    checkpoint = open_source(folder)
    plain = Reference(checkpoint.config, {name: checkpoint.read(name) for name in checkpoint.names()})
    expected = plain.logits(windows[0])
    errors = [
        np.square(Reference(c.config, dict(c.weights())).logits(windows[0]) - expected).mean()
        for c in (made, quantize(folder, tmp_path / "nearest", scheme="q8_0", rotate=["residual"]))
    ]
    assert errors[0] < errors[1]
