"""Directories are exchanged in one step; what killed processes left is put back or removed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from container_files import names_in, snapshot, tensors, write

from spqt_ti.container import Container, directories
from spqt_ti.container.directories import discard, remove_leftovers, replace_directory, restore, sibling


def folder(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


@pytest.fixture
def dead() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(process: int, path: Path, kind: str) -> Path:
    """The hidden name that a process of this number would take."""
    return Path(re.sub(rf"-{os.getpid()}-(\w{{8}})$", rf"-{process}-\1", str(sibling(path, kind))))


@pytest.mark.parametrize("exchange", [True, False])
def test_replace(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
    replace_directory(folder(tmp_path / "new", "new"), tmp_path / "model")
    assert snapshot(tmp_path / "model") == {"file": b"new"}
    replace_directory(folder(tmp_path / "newer", "newer"), tmp_path / "model")
    assert snapshot(tmp_path / "model") == {"file": b"newer"}
    assert names_in(tmp_path) == {"model"}


def test_nothing_is_replaced_unasked(tmp_path):
    """What another process wrote in the meantime may be in use."""
    new, model = folder(tmp_path / "new", "new"), folder(tmp_path / "model", "old")
    with pytest.raises(OSError, match="model"):
        replace_directory(new, model, overwrite=False)
    assert snapshot(model) == {"file": b"old"}
    discard(model)
    assert names_in(tmp_path) == {"new"}
    model.mkdir()
    replace_directory(new, model, overwrite=False)
    assert snapshot(model) == {"file": b"new"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says which systems exchange")
def test_the_name_is_never_free(tmp_path, monkeypatch):
    """Where two names can be exchanged, no rename happens at all."""
    folder(tmp_path / "model", "old")
    if not directories._exchange(folder(tmp_path / "probe", "x"), tmp_path / "model"):
        pytest.skip("this file system cannot exchange two names")
    monkeypatch.setattr(directories.os, "rename", None)
    replace_directory(folder(tmp_path / "new", "new"), tmp_path / "model")
    assert snapshot(tmp_path / "model") == {"file": b"new"}


def test_leftovers_of_dead_processes_are_removed(dead, tmp_path):
    other = tmp_path / "other"
    folder(left_by(dead, tmp_path / "model", "partial"), "half")
    folder(left_by(dead, other, "partial"), "half")
    mine = folder(sibling(tmp_path / "model", "partial"), "being written")
    elsewhere = folder(tmp_path / f".model.partial-00000000-{dead}-00000000", "of another machine")
    unlike = folder(tmp_path / ".model.partial-notes", "mine")
    remove_leftovers(tmp_path, "model")
    assert len(names_in(tmp_path)) == 4
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == {mine.name, elsewhere.name, unlike.name}


def test_what_was_moved_away_is_put_back(dead, tmp_path):
    folder(left_by(dead, tmp_path / "model", "old"), "the model")
    folder(left_by(dead, tmp_path / "model", "partial"), "half")
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == {"model"}
    assert snapshot(tmp_path / "model") == {"file": b"the model"}
    folder(left_by(dead, tmp_path / "model", "old"), "older")
    restore(tmp_path / "model")
    assert snapshot(tmp_path / "model") == {"file": b"the model"}


def test_a_model_that_was_moved_away_is_opened(copy, dead):
    copy.rename(left_by(dead, copy, "old"))
    assert Container.open(copy).summary() == "q4_k, zigzag"
    assert names_in(copy.parent) == {"copy"}


KILLED = """
import os, signal, sys
from container_files import tensors, write
from spqt_ti.container import directories
renames = int(sys.argv[2])
if renames:
    directories._exchange = lambda one, other: False
rename, calls = os.rename, []
def killing_rename(source, target):
    rename(source, target)
    calls.append(source)
    if len(calls) == renames:
        os.kill(os.getpid(), signal.SIGKILL)
directories.os.rename = killing_rename
rmtree = directories.shutil.rmtree
directories.shutil.rmtree = lambda *unused, **options: os.kill(os.getpid(), signal.SIGKILL)
write(sys.argv[1], tensors("row"), layout="row", overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("renames", [0, 1, 2], ids=["exchanged", "moved away", "put in place"])
def test_kill_9_while_overwriting_leaves_a_model(renames, copy):
    path = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", KILLED, str(copy), str(renames)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(names_in(copy.parent)) == 2
    found = Container.open(copy)
    assert found.summary() == ("q4_k, zigzag" if renames == 1 else "q4_k, row")
    write(copy, tensors("row"), layout="row", overwrite=True)
    assert names_in(copy.parent) == {"copy"}
