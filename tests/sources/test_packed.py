"""Folders of GPTQ, AWQ and mlx: the weights that were packed come back; what cannot be read is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from packed_weights import Case, write_packed
from safetensors.numpy import load_file, save_file
from tiny_models import random_weights, tiny_config

from spqt_ti.errors import CheckpointError
from spqt_ti.sources.open import model_files, open_checkpoint

CONFIG = tiny_config(
    hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=32, vocab_size=320,
)  # fmt: skip
WEIGHTS = random_weights(CONFIG)
CASES = [
    Case("gptq", 128, symmetric=True),
    Case("gptq", 32, act_order=True),
    Case("gptq", 64, act_order=True, version=2),
    Case("gptq", 64, bits=8, version=2),
    Case("awq", 64),
    Case("awq", 128),
    Case("mlx", 32),
    Case("mlx", 64, bits=8),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weights_come_back(case, tmp_path):
    exact = write_packed(tmp_path, CONFIG, WEIGHTS, case)
    checkpoint = open_checkpoint(tmp_path)
    for name, expected in exact.items():
        np.testing.assert_array_equal(checkpoint.read(name), expected.astype(np.float32))


@pytest.fixture
def packed(tmp_path):
    write_packed(tmp_path, CONFIG, WEIGHTS, Case("gptq", 64))
    return tmp_path


def rewrite(folder, **changes) -> None:
    """Change keys of quantization_config."""
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields["quantization_config"] |= changes
    path.write_text(json.dumps(fields))


def retensor(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, r"GPTQ with 3 bits is not supported \(only 2, 4, 8\)"),
        ({"checkpoint_format": "marlin"}, "'marlin' is not supported"),
        ({"dynamic": {"x": {}}}, "settings per module"),
        ({"group_size": 32}, r"is not packed as GPTQ, 4 bits in groups of 32 \(scales has shape"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ's version 'gemv'"),
        ({"quant_method": "bitsandbytes"}, r"already quantised \(bitsandbytes\)"),
        ({"group_size": 1e308}, r"a group of 1e\+308 weights is not supported"),
        ({"bits": None}, "not described as expected"),
    ],
)
def test_what_cannot_be_read_is_refused(changes, message, packed):
    rewrite(packed, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(packed)


def test_damage(packed):
    name = "model.layers.0.mlp.down_proj"
    retensor(packed, lambda tensors: tensors[f"{name}.g_idx"].__setitem__(3, 99))
    checkpoint = open_checkpoint(packed)
    with pytest.raises(CheckpointError, match="g_idx names group 0 or 99 of 2"):
        checkpoint.read(f"{name}.weight")
    retensor(packed, lambda tensors: tensors.pop(f"{name}.scales"))
    with pytest.raises(CheckpointError, match=r"down_proj\.scales is missing"):
        open_checkpoint(packed)


def test_early_writers(packed):
    """The description in a file of its own, no g_idx, and a bias of zeros for every module."""
    expected = {name: open_checkpoint(packed).read(name) for name in WEIGHTS}
    fields = json.loads((packed / "config.json").read_text())
    (packed / "quantize_config.json").write_text(json.dumps(fields.pop("quantization_config")))
    (packed / "config.json").write_text(json.dumps(fields))

    def change(tensors):
        for name in [name for name in tensors if name.endswith(".g_idx")]:
            del tensors[name]
            module = name.removesuffix(".g_idx")
            tensors[f"{module}.bias"] = np.zeros(tensors[f"{module}.scales"].shape[1], np.float16)

    retensor(packed, change)
    checkpoint = open_checkpoint(packed)
    assert packed / "quantize_config.json" in model_files(packed)
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), values)


def test_mlx_settings_of_single_modules(tmp_path):
    """mixed_4_8: modules with bits of their own."""
    four, eight = (write_packed(tmp_path / str(bits), CONFIG, WEIGHTS, Case("mlx", 64, bits)) for bits in (4, 8))
    module = "model.layers.0.mlp.down_proj"
    mixed = shutil.copytree(tmp_path / "4", tmp_path / "mixed")
    theirs = load_file(tmp_path / "8" / "model.safetensors")

    def change(tensors):
        tensors |= {name: array for name, array in theirs.items() if name.startswith(f"{module}.")}

    retensor(mixed, change)
    path = mixed / "config.json"
    fields = json.loads(path.read_text())
    fields["quantization"][module] = {"group_size": 64, "bits": 8}
    path.write_text(json.dumps(fields))
    checkpoint = open_checkpoint(mixed)
    for name in WEIGHTS:
        exact = (eight if name.startswith(module) else four)[name]
        np.testing.assert_array_equal(checkpoint.read(name), exact.astype(np.float32))
