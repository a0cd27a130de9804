"""Models from a Hugging Face hub on this machine: choices, revisions, tokens, offline mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import FakeHub
from tiny_models import random_weights, tiny_config, write_gguf, write_huggingface

from spqt_ti.errors import CheckpointError
from spqt_ti.sources import hub, registry
from spqt_ti.sources.open import open_checkpoint

constants = pytest.importorskip("huggingface_hub.constants")

CONFIG = tiny_config(num_hidden_layers=1)
NAMES = {"m-Q4_K_M.gguf": 3, "m-Q4_K_S.gguf": 2, "IQ4/m-IQ4_XS-00002-of-00002.gguf": 7,
         "IQ4/m-IQ4_XS-00001-of-00002.gguf": 8, "mmproj-m-f16.gguf": 9, "m.imatrix.gguf": 1}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("models")
    weights = random_weights(CONFIG)
    directory = write_huggingface(folder / "hf", CONFIG, weights)
    gguf = write_gguf(folder / "tiny.gguf", CONFIG, weights).read_bytes()
    model = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {"hf": model, "gguf": {"tiny-F32.gguf": gguf, "tiny-Q8_0.gguf": gguf, "README.md": b"hello"}}


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """A hub that serves, and an empty cache."""
    model = files["hf"]
    unwanted = {"pytorch_model.bin": b"pickle", "modeling.py": b"code", "onnx/model.safetensors": b"",
                "consolidated.safetensors": b"again", "README.md": b"old"}  # fmt: skip
    repositories = {
        "org/model": {"main": {**model, **unwanted}, "v1": {**model, "README.md": b"older"}},
        "org/model-GGUF": {"main": files["gguf"]},
        "org/gated": {"main": model},
        "org/private": {"main": model},
    }
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))  # of other processes
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    with FakeHub(repositories, frozenset({"org/gated"}), frozenset({"org/private"})).serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", hub.HubId("org/model")),
        ("org/model:Q4_K_M", hub.HubId("org/model", "Q4_K_M")),
        ("hf.co/org/m.v1:a/b-Q8_0.gguf@v1", hub.HubId("org/m.v1", "a/b-Q8_0.gguf", "v1")),
        ("https://huggingface.co/org/model@refs/pr/3", hub.HubId("org/model", "", "refs/pr/3")),
        ("models/missing.gguf", None),
        ("C:/model", None),
        ("a/b/c", None),
        ("../org/name", None),
        ("org/..", None),
        ("org/name@../../../x", None),
        ("org/name:../m.gguf", None),
    ],
)
def test_ids(text, expected):
    assert hub.parse(text) == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("m-Q4_K_S", ["m-Q4_K_S.gguf"]),
        ("IQ4_XS", ["IQ4/m-IQ4_XS-00001-of-00002.gguf", "IQ4/m-IQ4_XS-00002-of-00002.gguf"]),
        ("IQ4/m-IQ4_XS-00001-of-00002.gguf", sorted(n for n in NAMES if n.startswith("IQ4"))),
    ],
)
def test_a_choice_among_gguf_files(choice, expected):
    assert hub.chosen_files(hub.HubId("org/m", choice), NAMES) == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("", r"org/m has several models; choose one as org/m:NAME from IQ4_XS \(0 MB\), Q4_K_M .*, Q4_K_S"),
        ("Q5_K", r"org/m: Q5_K is not there; choose one as org/m:NAME from IQ4_XS"),
    ],
)
def test_a_wrong_choice_lists_what_there_is(choice, message):
    with pytest.raises(CheckpointError, match=message):
        hub.chosen_files(hub.HubId("org/m", choice), NAMES)


# Absolute, upwards, Windows' separators and drives, control characters, parts of nothing, names that cannot be.
HOSTILE = ["/m.gguf", "../m.gguf", "a/../../m.gguf", "..", "", "a//m.gguf", "./m.gguf", "a/", "..\\m.gguf", "a\\m.gguf",
           "\\\\host\\share\\m.gguf", "C:m.gguf", "C:/m.gguf", "c:\\m.gguf", "m\0.gguf", "m\n.gguf", "\x1b[2Jm.gguf",
           "m\u202e.gguf", f"{'m' * 300}.gguf", f"{'é' * 130}.gguf"]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_listing_may_not_lead_out_of_the_folder(name, monkeypatch):
    listed = [SimpleNamespace(rfilename=one, size=1) for one in ("a/..b/m.gguf", name)]
    api = SimpleNamespace(repo_info=lambda *unused, **options: SimpleNamespace(siblings=listed))
    monkeypatch.setattr(hub, "_api", lambda: api)
    monkeypatch.setattr(hub, "_cached", lambda wanted: None)
    assert hub._listing(hub.HubId("org/m")) == ({"a/..b/m.gguf": 1}, None)


@pytest.mark.parametrize(
    "pair", [("model.safetensors", "Model.safetensors"), ("\u00e9.safetensors", "e\u0301.safetensors")]
)
def test_names_that_some_file_systems_take_for_one(pair):
    with pytest.raises(CheckpointError, match="differ in the case of letters"):
        hub.chosen_files(hub.HubId("org/m"), dict.fromkeys(pair, 1))


def test_what_is_listed_and_hostile_is_not_fetched(server, files):
    server.repositories["org/hostile"] = {"main": {"../../../escaped.safetensors": b"x", **files["hf"]}}
    path = registry.resolve("org/hostile")
    assert sorted(server.downloads()) == sorted(files["hf"])
    assert sorted(entry.name for entry in path.iterdir()) == sorted(files["hf"])
    assert not list(Path(constants.HF_HUB_CACHE).parent.rglob("escaped*"))


def test_safetensors_are_fetched_once_without_pickles_and_code(server, files):
    path = registry.resolve("org/model")
    assert sorted(server.downloads()) == sorted(files["hf"])
    assert open_checkpoint(path).config.hidden_size == CONFIG.hidden_size
    assert registry.resolve("org/model") == path
    assert len(server.downloads()) == len(files["hf"])


def test_a_gguf_file_is_chosen(server, files):
    path = registry.resolve("org/model-GGUF:q8_0")
    assert (path.name, path.read_bytes()) == ("tiny-Q8_0.gguf", files["gguf"]["tiny-Q8_0.gguf"])
    assert server.downloads() == ["tiny-Q8_0.gguf"]
    with pytest.raises(CheckpointError, match=r"choose one as org/model-GGUF:NAME from F32 \(\d+ MB\), Q8_0"):
        registry.resolve("org/model-GGUF")
    with pytest.raises(CheckpointError, match="no GGUF file to choose from; ask for org/model"):
        registry.resolve("org/model:Q4_K_M")


def test_revisions(server):
    tagged, latest = registry.resolve("org/model@v1"), registry.resolve("org/model")
    assert tagged.name == server.commit("org/model", "v1") != latest.name
    assert registry.resolve(f"org/model@{tagged.name}") == tagged
    with pytest.raises(CheckpointError, match="no branch, tag or commit v9"):
        registry.resolve("org/model@v9")


def test_a_pinned_commit_in_the_cache_needs_no_network(server):
    commit = server.commit("org/model", "main")
    path = registry.resolve(f"org/model@{commit}")
    server.seen.clear()
    assert registry.resolve(f"org/model@{commit}") == path
    assert server.seen == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("org/gated", "asks for terms"), ("org/private", "private one: set HF_TOKEN"), ("org/no", "no such")],
)
def test_tokens(name, message, server, monkeypatch):
    with pytest.raises(CheckpointError, match=message):
        registry.resolve(name)
    if name != "org/no":
        monkeypatch.setenv("HF_TOKEN", server.token)
        assert (registry.resolve(name) / "config.json").is_file()


def test_a_hub_that_does_not_answer(server, monkeypatch):
    path = registry.resolve("org/model-GGUF:F32")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert registry.resolve("org/model-GGUF:F32") == path
    with pytest.raises(
        CheckpointError, match=r"org/other cannot be fetched .*hf download org/other --local-dir FOLDER"
    ):
        registry.resolve("org/other")


def test_commands_offline(server, tmp_path):
    """In processes of their own, because the library reads the environment when it is imported."""
    command = [sys.executable, "-m", "spqt_ti", "pull"]
    online = subprocess.run([*command, "org/model-GGUF:Q8_0"], capture_output=True, text=True, timeout=120, check=False)
    assert online.returncode == 0, online.stderr
    server.seen.clear()
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    for name, code in (("org/model-GGUF:Q8_0", 0), ("org/model", 1)):
        done = subprocess.run([*command, name], capture_output=True, text=True, timeout=120, env=offline, check=False)
        assert done.returncode == code, done.stderr
        if code == 0:
            assert Path(done.stdout.strip()).name == "tiny-Q8_0.gguf"
        else:
            assert "HF_HUB_OFFLINE is set, and it is not in the cache" in done.stderr
    assert server.seen == []


def test_cached_repositories(server):
    assert hub.cached_repositories() == []
    registry.resolve("org/model-GGUF:F32")
    (repository,) = hub.cached_repositories()
    assert repository.repository == "org/model-GGUF"
    assert repository.files.keys() == {"tiny-F32.gguf"}
    hub.remove(repository)
    assert hub.cached_repositories() == []
