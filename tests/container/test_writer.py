"""A container is written whole or not at all, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
from container_files import (
    SHARD,
    fill,
    names_in,
    snapshot,
    tensors,
    write,
    writer,
)
from safetensors import SafetensorError

from spqt_ti.container import (
    Container,
    check_destination,
    directories,
)
from spqt_ti.container import (
    writer as writer_module,
)
from spqt_ti.errors import ContainerError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_nothing(error, tmp_path):
    content = tensors("zigzag")

    def fail() -> None:
        with writer(tmp_path / "new" / "deep" / "model") as out:
            for name, values in list(content.items())[:-1]:
                out.add(name, values)
            raise error

    with pytest.raises(error):
        fail()
    assert names_in(tmp_path) == set()


def test_a_shard_is_written_as_soon_as_it_is_complete(tmp_path):
    with writer(tmp_path / "model") as out:
        for name, values in tensors("zigzag").items():
            if name.startswith("model.layers.0."):
                out.add(name, values)
        (partial,) = tmp_path.iterdir()
        assert names_in(partial) == {SHARD}
        for name, values in tensors("zigzag").items():
            if not name.startswith("model.layers.0."):
                out.add(name, values)


def test_a_missing_tensor_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor .* was not added"):
        write(tmp_path / "model", {})
    assert names_in(tmp_path) == set()


def test_only_expected_tensors_are_taken(tmp_path):
    with pytest.raises(ValueError, match="not part of this model"), writer(tmp_path / "model") as out:
        out.add("other", np.zeros(3, np.float32))
    with (
        pytest.raises(ValueError, match=r"is float64 \[192\], expected float32 \[192\]"),
        writer(tmp_path / "m") as out,
    ):
        out.add("model.norm.weight", np.zeros(192))
    norm = np.zeros(192, np.float32)
    with pytest.raises(ValueError, match="already"), writer(tmp_path / "m") as out:  # noqa: PT012
        out.add("model.norm.weight", norm)
        out.add("model.norm.weight", norm)
    assert names_in(tmp_path) == set()


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", tensors("zigzag"))
    assert names_in(tmp_path) == {"model"}


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", tensors("zigzag"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "spqt.json").is_file()


def test_a_container_is_replaced_only_when_told(copy):
    before = snapshot(copy)
    with pytest.raises(ContainerError, match=r"already there; .*--force"):
        writer(copy)
    assert snapshot(copy) == before
    write(copy, tensors("row"), layout="row", overwrite=True)
    assert Container.open(copy).summary() == "q4_k, row"
    assert names_in(copy.parent) == {"copy"}


def test_a_destination_taken_in_the_meantime(tmp_path):
    with pytest.raises(ContainerError, match="not empty"), writer(tmp_path / "model") as out:  # noqa: PT012
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "diary.txt").write_text("dear diary")
        fill(out, [])
    assert snapshot(tmp_path / "model") == {"diary.txt": b"dear diary"}
    assert names_in(tmp_path) == {"model"}


def test_other_directories_are_never_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary.txt").write_text("dear diary")
    for overwrite in (False, True):
        with pytest.raises(ContainerError, match="not empty and holds no quantised model"):
            writer(tmp_path / "home", overwrite=overwrite)
    assert (tmp_path / "home" / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_swap_keeps_the_old_container(failing, error, copy, monkeypatch):
    """Where two names cannot be exchanged in one step.

    Renames: 1 moves the old container away, 2 puts the new one in place; a third one undoes the first.
    """
    before, rename, calls = snapshot(copy), os.rename, []

    def failing_rename(source, target):
        calls.append(source)
        if len(calls) == failing:
            raise error
        rename(source, target)

    monkeypatch.setattr(directories.os, "rename", failing_rename)
    monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
    with pytest.raises((ContainerError, KeyboardInterrupt)):
        write(copy, tensors("row"), layout="row", overwrite=True)
    assert snapshot(copy) == before
    assert names_in(copy.parent) == {"copy"}


def test_ctrl_c_after_the_swap_keeps_the_new_container(copy, monkeypatch):
    rename = os.rename

    def interrupted_rename(source, target):
        rename(source, target)
        if Path(target) == copy:
            raise KeyboardInterrupt

    monkeypatch.setattr(directories.os, "rename", interrupted_rename)
    monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
    with pytest.raises(KeyboardInterrupt):
        write(copy, tensors("row"), layout="row", overwrite=True)
    assert Container.open(copy).summary() == "q4_k, row"
    assert names_in(copy.parent) == {"copy"}


def test_unwritable_destinations(tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    for destination, message in (
        (file, "a file is in the way"),
        (file / "below", "cannot be written"),
        (Path("/proc/nothing/model"), "cannot be written"),
    ):
        with pytest.raises(ContainerError, match=message) as caught:
            write(destination, {})
        assert "\n" not in str(caught.value)
    assert snapshot(tmp_path) == {"file": b"in the way"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=["OSError", "SafetensorError"],
)
def test_full_disk_while_writing(error, tmp_path, monkeypatch):
    def full(*unused, **options):
        raise error

    monkeypatch.setattr(writer_module, "save_file", full)
    with pytest.raises(ContainerError, match=r"model: cannot be written \(.*No space left on device"):
        write(tmp_path / "model", tensors("zigzag"))
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("early", [True, False], ids=["before any work", "while writing"])
def test_full_disk(early, tmp_path, monkeypatch):
    """A real one, where this process may mount it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        if not early:
            roomy = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: roomy)
        added = []
        with pytest.raises(ContainerError, match="No space left on device"), writer(disk / "model") as out:
            fill(out, added)
        assert bool(added) is not early
        assert names_in(disk) == set()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = write(tmp_path / "model", tensors("zigzag")).path
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.iterdir()} == {0o640}


def test_check_destination_expands_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_destination("~/model") == tmp_path / "model"
