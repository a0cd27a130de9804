"""Quantising a source: every byte is the formats', memory stays small, and bad sources leave nothing behind."""

from __future__ import annotations

import gc
import hashlib
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from tiny_models import CASES, random_weights, rounded, tiny_config, write_gguf, write_huggingface

import spqt_ti
from spqt_ti.container import Container
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.quantize import check_supported, quantize
from spqt_ti.errors import CheckpointError, ContainerError, QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.sources.open import open_checkpoint


def assert_quantised(container: Container, weights: dict[str, np.ndarray]) -> None:
    """Every stored tensor is what the NumPy formats make of `weights`."""
    seen = set()
    for matrix in container.matrices.values():
        parts = [f"{part}.weight" for part in matrix.projections()]
        w = np.concatenate([weights.get(part, weights["model.embed_tokens.weight"]) for part in parts])
        expected = layouts.quantize_matrix(w, matrix.layout, matrix.scheme)
        np.testing.assert_array_equal(container.read_matrix(matrix), expected, err_msg=matrix.name)
        seen.add(matrix.tensor)
        if f"{next(iter(matrix.projections()))}.bias" in weights:
            bias = np.concatenate([weights[f"{part}.bias"] for part in matrix.projections()])
            np.testing.assert_array_equal(container.read(f"{matrix.name}.bias"), bias, err_msg=matrix.name)
            seen.add(f"{matrix.name}.bias")
    for name in (name for name in weights if "norm" in name):
        np.testing.assert_array_equal(container.read(name), weights[name], err_msg=name)
        seen.add(name)
    assert set(container.names()) == seen


def checksums(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_directory(changes, tmp_path):
    config = tiny_config(**changes)
    weights = random_weights(config)
    source = write_huggingface(tmp_path / "source", config, weights)
    before = checksums(source)
    container = quantize(source, tmp_path / "model")
    assert_quantised(container, weights)
    assert container.config == config
    assert (container.summary(), container.source.name) == ("q4_k, zigzag", "source")
    found = container.source.files["model.safetensors"]
    assert found == ((source / "model.safetensors").stat().st_size, before["model.safetensors"])
    assert container.chat_template == tiny_models.CHAT_TEMPLATE
    assert checksums(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "model"}
    Container.open(container.path, verify=True)


@pytest.mark.parametrize("case", ["gqa", "multiple_of_256"])
def test_row_layout_is_ggml_s(case, tmp_path):
    config = tiny_config(**CASES[case])
    weights = random_weights(config)
    container = quantize(write_huggingface(tmp_path / "source", config, weights), tmp_path / "model", layout="row")
    assert_quantised(container, weights)
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj"):
        values = gguf.quants.dequantize(container.row_bytes(name), gguf.GGMLQuantizationType.Q4_K)
        cols = weights[f"{name}.weight"].shape[1]
        np.testing.assert_array_equal(values[:, :cols], container.dequantize(name))
        np.testing.assert_allclose(values[:, :cols], weights[f"{name}.weight"], atol=0.05)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("scheme", "layout"),
    [
        ("q6_k", "zigzag"),
        ("q8_0", "zigzag"),
        ("q6_k", "row"),
        ("q4_k,down=q6_k,o=q8_0,head=q6_k", "zigzag,gate_up=row"),
        ("q4_k,head=q4_k", "head=row"),
    ],
)
def test_schemes(scheme, layout, tied, tmp_path):
    config = tiny_config(tie_word_embeddings=tied)
    weights = random_weights(config)
    source = write_huggingface(tmp_path / "source", config, weights)
    container = quantize(source, tmp_path / "model", layout=layout, scheme=scheme)
    assert_quantised(container, weights)
    expected = parse_storage(scheme, layout)
    for site in Site:
        assert container.matrix(1, site).storage == expected[site.label]
    assert (container.embedding.storage, container.head.storage) == (expected["embedding"], expected["head"])
    assert container.config.tie_word_embeddings == (tied and "head" not in scheme)
    assert ("lm_head" in container.matrices) != container.config.tie_word_embeddings


def test_bf16_shards(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    weights = random_weights(config)
    source = write_huggingface(tmp_path / "source", config, weights, dtype="bf16", shards=3)
    assert_quantised(quantize(source, tmp_path / "model"), rounded(weights, "bf16"))


def test_gguf(tmp_path):
    config = tiny_config()
    weights = random_weights(config)
    container = quantize(write_gguf(tmp_path / "source.gguf", config, weights), tmp_path / "model")
    assert_quantised(container, weights)
    assert container.source.name == "source.gguf"
    assert container.source.sha256 == checksums(tmp_path / "source.gguf")["source.gguf"]


def test_memory_holds_a_few_tensors(tmp_path):
    """The peak is bounded by the largest tensor, not by the model."""
    config = tiny_config(num_hidden_layers=24, vocab_size=2048, intermediate_size=768)
    weights = random_weights(config)
    largest, total = max(w.nbytes for w in weights.values()), sum(w.nbytes for w in weights.values())
    assert total > 20 * largest
    source = write_huggingface(tmp_path / "source", config, weights)
    del weights
    quantize(source, tmp_path / "once")  # imports and compiles
    gc.collect()
    tracemalloc.start()
    try:
        quantize(source, tmp_path / "model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * largest


def test_smollm2(smollm2_gguf, tmp_path):
    start = time.perf_counter()
    container = quantize(smollm2_gguf, tmp_path / "model")
    assert time.perf_counter() - start < 20
    layers, embedding, norms = 30 * (313_344 + 193_536 + 995_328 + 516_096), 49_152 * 18 * 34, 61 * 576 * 4
    assert sum(container.read(name).nbytes for name in container.names()) == layers + embedding + norms
    up = container.dequantize("model.layers.29.mlp.up_proj")
    exact = open_checkpoint(smollm2_gguf).read("model.layers.29.mlp.up_proj.weight")
    assert np.sqrt(np.mean((up - exact) ** 2) / np.mean(exact**2)) < 0.08


def test_result_does_not_depend_on_the_run(tmp_path):
    config = tiny_config()
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    first, second = (quantize(source, tmp_path / name) for name in ("first", "second"))
    assert checksums(first.path) == checksums(second.path)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.o_proj.bias",
        "model.norm.weight",
    ],
)
def test_not_finite(name, value, tmp_path):
    config = tiny_config(attention_bias=True)
    weights = random_weights(config)
    weights[name].reshape(-1)[5] = value
    source = write_huggingface(tmp_path / "source", config, weights)
    with pytest.raises(QuantizationError, match=f"tensor {name} holds NaN or infinity"):
        quantize(source, tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.layers.1.self_attn.qkv_proj"])
def test_too_large(name, tmp_path):
    config = tiny_config()
    weights = random_weights(config)
    weights[f"{name.replace('qkv', 'k')}.weight"][3, 3] = 1e30
    with pytest.raises(QuantizationError, match=rf"{name}.*too large"):
        quantize(write_huggingface(tmp_path / "source", config, weights), tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 208}, "hidden_size is 208, expected a multiple of 32"),
        ({"intermediate_size": 100}, "intermediate_size is 100, expected a multiple of 32"),
        ({"head_dim": 24}, "head_dim is 24, expected a multiple of 16"),
    ],
)
def test_unsupported_sizes(changes, message, tmp_path):
    config = tiny_config(**changes)
    with pytest.raises(CheckpointError, match=message):
        check_supported(config)
    with pytest.raises(CheckpointError, match=message):
        quantize(write_huggingface(tmp_path / "source", config, random_weights(config)), tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("options", [{"layout": "column"}, {"scheme": "q1_k"}])
def test_unknown_choices(options, tmp_path):
    with pytest.raises(QuantizationError, match=r"unknown (layout|scheme) '.*'; there are: "):
        quantize("nothing", tmp_path / "model", **options)


def test_quantised_source(tmp_path):
    config = tiny_config()
    container = quantize(write_huggingface(tmp_path / "source", config, random_weights(config)), tmp_path / "model")
    with pytest.raises(CheckpointError, match="already quantised"):
        quantize(container.path, tmp_path / "again")


def test_a_taken_destination_is_refused_before_anything_is_fetched(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ContainerError, match="a file is in the way"):
        quantize("smollm2-135m", tmp_path / "file")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interruption_keeps_what_was_there(error, tmp_path, monkeypatch):
    """In the middle of replacing a container: nothing new, the old one untouched."""
    config = tiny_config()
    source = write_huggingface(tmp_path / "source", config, random_weights(config))
    before = checksums(quantize(source, tmp_path / "model").path)
    read = Checkpoint.read

    def interrupted(self, name):
        if name == "model.layers.1.mlp.down_proj.weight":
            raise error
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "read", interrupted)
    with pytest.raises(error):
        quantize(source, tmp_path / "model", layout="row", overwrite=True)
    assert checksums(tmp_path / "model") == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "model"}


def test_public_name():
    assert spqt_ti.quantize is quantize
