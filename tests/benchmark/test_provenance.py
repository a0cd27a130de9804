"""What stands under a table; and the warning about a busy machine."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from spqt_ti.benchmark import provenance as module
from spqt_ti.benchmark.provenance import provenance, source_commit, warn_if_busy


def git(folder: Path, *arguments: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_the_line() -> None:
    line = provenance(2, "a GPU", "llama-cpp-python 0.3")
    assert line.startswith("a GPU, 2 threads, spqt-ti ")
    assert ", llama-cpp-python 0.3, " in line
    assert ", 1 thread, " in provenance(1)
    assert "thread" not in provenance(None, "a GPU")


def test_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a tree of its own; not that of a repository that a virtual environment happens to lie in."""
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    monkeypatch.setattr(module, "PACKAGE", package)
    assert source_commit() is None
    git(tmp_path / "repository", "init", "-q")
    (package / "__init__.py").write_text("")
    assert source_commit() is None
    git(tmp_path / "repository", "add", ".")
    git(tmp_path / "repository", "commit", "-qm", "x")
    commit = source_commit()
    assert commit is not None
    assert len(commit) >= 7
    (package / "__init__.py").write_text("changed")
    assert source_commit() == f"{commit}-dirty"
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    assert source_commit() is None


@pytest.mark.parametrize(("load", "warned"), [(0.1, False), (900.0, True)])
def test_busy(
    load: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    caplog.set_level(logging.INFO, "spqt_ti")
    warn_if_busy()
    assert bool(caplog.messages) == warned
