"""`spqt list` and `spqt rm` on a cache folder of this test's own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti import api
from spqt_ti.cli import main as cli
from spqt_ti.cli import stored
from spqt_ti.container import Container
from spqt_ti.convert.identity import cached_copy
from spqt_ti.errors import ContainerError

constants = pytest.importorskip("huggingface_hub.constants")
CONFIG = tiny_config(num_hidden_layers=1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A hub repository, as the hub's library lays it out, with a quantised copy, and compiled kernels."""
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit, repository = "a" * 40, tmp_path / "hub" / "models--org--tiny"
    source = write_huggingface(repository / "snapshots" / commit, CONFIG, random_weights(CONFIG))
    (repository / "blobs").mkdir()
    for path in source.iterdir():
        blob = repository / "blobs" / path.name
        shutil.move(path, blob)
        path.symlink_to(os.path.relpath(blob, source))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "kernels" / "one.bc").write_bytes(b"12345")
    api.open_quantized(source)
    return source


def listed(capsys) -> dict[str, dict]:
    assert cli.main(["list", "--json"]) == 0
    return {one["name"]: one for one in json.loads(capsys.readouterr().out)}


def test_list_and_rm(cache, capsys):
    copy = cached_copy(cache)
    assert copy.name.startswith("tiny-zigzag-q4_k-")
    found = listed(capsys)
    assert found.keys() == {"org/tiny", copy.name, "kernels"}
    assert (found["kernels"]["bytes"], found["org/tiny"]["kind"], found[copy.name]["made_from"]) == (5, "hub", "tiny")
    assert found[copy.name]["bytes"] == sum(path.stat().st_size for path in copy.iterdir())
    assert cli.main(["rm", "org/tiny", "--dry-run"]) == 0
    assert "would remove org/tiny" in capsys.readouterr().out
    assert listed(capsys).keys() == found.keys()
    assert cli.main(["rm", "org/tiny@main"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"removed {copy.name} (quantised, ")
    assert listed(capsys).keys() == {"kernels"}
    assert not cache.exists()
    assert cli.main(["rm", "org/tiny"]) == 1
    assert "org/tiny: not stored here (spqt list: kernels)" in capsys.readouterr().err


def test_quantize_tells_a_person_what_is_there_already(cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["quantize", str(cache), str(tmp_path / "out")]) == 0
    assert f"the same is in the cache already: {cached_copy(cache)}" in capsys.readouterr().err
    assert cli.main(["quantize", str(cache), str(tmp_path / "row"), "--layout", "row"]) == 0
    assert "already" not in capsys.readouterr().err


def test_another_revision_with_the_same_content_is_not_quantised_again(cache):
    copy = cached_copy(cache)
    other = shutil.copytree(cache, cache.with_name("b" * 40))
    (other / "README.md").write_text("new")
    assert cached_copy(other) == copy
    renamed = shutil.copytree(cache, cache.parents[2] / "mine")
    assert cached_copy(renamed) == copy


def test_what_another_process_removes_meanwhile(cache, capsys, monkeypatch):
    """Two `spqt rm` at once, a model that goes while it is listed, and one that is read while it is removed."""
    (copy,) = [one for one in stored.stored() if one.kind == "quantised"]
    opened = Container.open(copy.path)
    (source,) = [one for one in stored.stored() if one.kind == "hub"]
    for one in (copy, source):
        one.remove()
        one.remove()
    assert not Path(copy.path).exists()
    with pytest.raises(ContainerError, match="cannot be read"):
        opened.read("model.norm.weight")
    monkeypatch.setattr(stored, "_entries", lambda folder: [Path(copy.path)] if folder == "quantized" else [])
    assert listed(capsys)[copy.name] | {"path": ""} == {
        "name": copy.name, "kind": "quantised", "bytes": 0, "path": "", "made_from": "damaged",
    }  # fmt: skip
