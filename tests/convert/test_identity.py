"""A source is known by the content of what makes it a model, and hashed again only when a file system says so."""

from __future__ import annotations

import hashlib
import os
import shutil

import pytest
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti.convert import identity
from spqt_ti.convert.identity import cached_copy, files_of
from spqt_ti.errors import CheckpointError


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    config = tiny_config()
    return write_huggingface(tmp_path / "source", config, random_weights(config))


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that were hashed."""
    names, hashing = [], identity.sha256_of

    def counting(file):
        names.append(file.name)
        return hashing(file)

    monkeypatch.setattr(identity, "sha256_of", counting)
    monkeypatch.setattr(identity, "REMEMBERED", 0)
    return names


def test_files_and_their_content(source):
    (source / "README.md").write_text("hello")
    found = files_of(source)
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(found)
    assert "README.md" not in found
    for name, (size, sha256) in found.items():
        data = (source / name).read_bytes()
        assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_file_that_has_not_changed_is_hashed_once(source, hashed):
    first = files_of(source)
    assert sorted(hashed) == sorted(first)
    hashed.clear()
    (source / "README.md").write_text("hello")
    assert files_of(source) == first
    assert not hashed
    os.utime(source / "config.json", ns=(1, 1))
    assert files_of(source) == first
    assert hashed == ["config.json"]


def test_a_damaged_memory_is_done_without(source, hashed, tmp_path):
    first = files_of(source)
    (memory,) = (tmp_path / "cache" / "sources").iterdir()
    for text in ("{", "[]", '{"model.safetensors": 3}'):
        memory.write_text(text)
        assert files_of(source) == first


def test_small_sources_leave_no_memory(source, tmp_path):
    files_of(source)
    assert not (tmp_path / "cache").exists()


def test_one_copy_per_content_scheme_and_layout(source, tmp_path):
    first = cached_copy(source)
    (source / "README.md").write_text("hello")
    os.utime(source / "model.safetensors")
    assert cached_copy(source) == first
    moved = shutil.copytree(source, tmp_path / "elsewhere" / "source")
    assert cached_copy(moved) == first
    assert cached_copy(source, scheme="q6_k") != first
    assert cached_copy(source, layout="row") != first
    config = source / "config.json"
    config.write_text(config.read_text().replace("192", "193"))
    assert cached_copy(source) != first


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.gguf: cannot be read"):
        files_of(tmp_path / "gone.gguf")
