"""Policies by name: shipped, from a file, from a hub on this machine; and what spqt policy says of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_hub import FakeHub

from spqt_ti.cli import main as cli
from spqt_ti.errors import PolicyError
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.sparsity.shared_policies import find_policy, shipped

constants = pytest.importorskip("huggingface_hub.constants")


def policy(level: float = 0.5, first: float = 0.25) -> SparsityPolicy:
    thresholds = np.full((3, 4), 0.5, np.float32)
    thresholds[0] = first, 0, 1, 2
    return SparsityPolicy("own", level, thresholds, "0123456789abcdef", {"tokens": 7})


def run(capsys, *arguments: object) -> str:
    assert cli.main(["policy", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_shipped_ones_fit_the_known_model(smollm2_gguf):
    from spqt_ti import api

    container = api.open_quantized("smollm2-135m")
    found = {name: find_policy(name) for name in shipped()}
    assert [name for name in found if name.startswith("smollm2-135m:")] != []
    for name, one in found.items():
        one.check(container.fingerprint, container.config.num_hidden_layers)
        assert f"{one.sparsity:g}" == name.partition(":")[2]


def test_names_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyError, match=r"no policy of that name comes along \(.*smollm2-135m:0\.5"):
        find_policy("smollm2-135m:0.07")
    with pytest.raises(PolicyError, match="cannot read the policy"):
        find_policy("missing.json")


def test_from_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {"policies/a.json": policy().to_json().encode()}
    old = {"policies/a.json": policy(0.25).to_json().encode()}
    with FakeHub({"org/shared": {"main": files, "v1": old}}).serving() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert find_policy("org/shared/policies/a.json").sparsity == 0.5
        assert find_policy("org/shared/policies/a.json@v1").sparsity == 0.25
        with pytest.raises(PolicyError, match=r"no such file here, and org/shared: the repository has no file b\.json"):
            find_policy("org/shared/b.json")


def test_show_diff_and_plot(tmp_path, capsys):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    policy().save(paths[0])
    policy(0.4, first=0.125).save(paths[1])
    assert "smollm2-135m:0.5" in run(capsys)
    shown = json.loads(run(capsys, "show", paths[0], "--json"))
    assert (shown["method"], shown["tokens"], shown["thresholds"][0]) == ("own", 7, [0.25, 0, 1, 2])
    assert "| 0 | 0.25 | 0 | 1 | 2 |" in run(capsys, "show", paths[0])
    report = json.loads(run(capsys, "diff", *paths, "--json"))
    assert report["fields"] == {"sparsity": [0.5, 0.4]}
    assert report["thresholds"] == [{"layer": 0, "site": "qkv", "thresholds": [0.25, 0.125]}]
    assert "| 0 | qkv | 0.25 | 0.125 |" in run(capsys, "diff", *paths)
    assert run(capsys, "diff", paths[0], paths[0]) == "the same\n"
    pytest.importorskip("matplotlib")
    run(capsys, "plot", *paths, "-o", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
