"""Policies with predictors: what is read is what was saved, and anything else is refused by name."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spqt_ti.errors import PolicyError
from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.sparsity.policy import SparsityPolicy


def predictor(seed: int) -> NeuronPredictor:
    """Values that f16 holds."""
    rng = np.random.default_rng(seed)
    shapes = {"fc1": (3, 8), "fc2": (13, 3), "bias": (13,)}
    values = {name: rng.standard_normal(shape).astype(np.float16).astype(np.float32) for name, shape in shapes.items()}
    return NeuronPredictor(**(values | {"bias": rng.standard_normal(13, np.float32)}))


POLICY = SparsityPolicy(
    "svd", 0.5, np.zeros((4, 4), np.float32), "abc123", {"rank": 3},
    predictors={0: predictor(0), 2: predictor(2)}, executor=Executor.PARALLEL,
)  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    POLICY.save(tmp_path / "policy.json")
    return tmp_path / "policy.json"


def test_what_is_read_was_saved(saved):
    read = SparsityPolicy.load(saved)
    assert (sorted(read.predictors), read.executor, read.method) == ([0, 2], Executor.PARALLEL, "svd")
    x = np.random.default_rng(5).standard_normal((50, 8))
    for layer, before in POLICY.predictors.items():
        for part in ("fc1", "fc2", "bias"):
            np.testing.assert_array_equal(getattr(read.predictors[layer], part), getattr(before, part))
        np.testing.assert_array_equal(read.predictors[layer].predict(x), before.predict(x))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["policy.json", "policy.safetensors"]


def test_same_bytes_again(saved, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    SparsityPolicy.load(saved).save(other / "policy.json")
    for name in ("policy.json", "policy.safetensors"):
        assert (other / name).read_bytes() == (saved.parent / name).read_bytes()


def test_a_policy_without_predictors_is_as_before(tmp_path):
    plain = dataclasses.replace(POLICY, predictors={})
    plain.save(tmp_path / "plain.json")
    fields = json.loads((tmp_path / "plain.json").read_text())
    assert list(fields) == ["format", "method", "sparsity", "model", "calibration", "sites", "thresholds"]
    assert fields["format"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plain.json"]


def change(path: Path, **predictors) -> None:
    fields = json.loads(path.read_text())
    fields["predictors"] |= predictors
    path.write_text(json.dumps(fields))


def rehash(path: Path) -> None:
    """Have the policy name the file as it is."""
    import hashlib

    factors = path.with_suffix(".safetensors")
    change(path, sha256=hashlib.sha256(factors.read_bytes()).hexdigest())


def test_a_missing_file(saved):
    saved.with_suffix(".safetensors").unlink()
    with pytest.raises(PolicyError, match=r"policy\.safetensors: the policy's predictors cannot be read"):
        SparsityPolicy.load(saved)


def test_another_file(saved):
    factors = saved.with_suffix(".safetensors")
    factors.write_bytes(factors.read_bytes()[:-1] + b"\1")
    with pytest.raises(PolicyError, match="not the predictors that the policy was saved with"):
        SparsityPolicy.load(saved)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("2.bias"), "2.bias"),
        (lambda t: t.update({"2.fc1": t["2.fc1"][:, :0]}), "rank 3, expected 1 to hidden = 0"),
        (lambda t: t.update({"0.fc2": t["0.fc2"].astype(np.float32)}), "0.fc2 is float32"),
        (lambda t: t.update({"0.bias": t["0.bias"] * np.nan}), "not finite"),
        (lambda t: t.update({"x.bias": t["0.bias"]}), "invalid literal"),
    ],
)
def test_a_damaged_file(saved, damage, message):
    factors = saved.with_suffix(".safetensors")
    tensors = load_file(factors)
    damage(tensors)
    save_file(tensors, factors)
    rehash(saved)
    with pytest.raises(PolicyError, match=message):
        SparsityPolicy.load(saved)


def test_not_safetensors(saved):
    saved.with_suffix(".safetensors").write_bytes(b"hello")
    rehash(saved)
    with pytest.raises(PolicyError, match="not a file of predictors"):
        SparsityPolicy.load(saved)


@pytest.mark.parametrize("name", ["../policy.safetensors", "/etc/passwd", 3, ""])
def test_a_name_that_leads_elsewhere(saved, name):
    change(saved, file=name)
    with pytest.raises(PolicyError, match=r"expected the name of a file|cannot be read"):
        SparsityPolicy.load(saved)


def test_an_unknown_executor(saved):
    saved.write_text(saved.read_text().replace('"parallel"', '"both"'))
    with pytest.raises(PolicyError, match="both"):
        SparsityPolicy.load(saved)


def test_layers_and_values_that_do_not_fit(tmp_path):
    with pytest.raises(PolicyError, match="a predictor for layer 9"):
        dataclasses.replace(POLICY, predictors={9: predictor(0)})
    huge = dataclasses.replace(predictor(0), fc2=np.full((13, 3), 1e6, np.float32))
    with pytest.raises(PolicyError, match="f16 cannot hold"):
        dataclasses.replace(POLICY, predictors={0: huge}).save(tmp_path / "policy.json")
    assert not list(tmp_path.iterdir())
