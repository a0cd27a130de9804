"""The folder of compiled kernels after kills, cut files and full disks."""

from __future__ import annotations

import collections
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spqt_ti.backend import kernel_cache

fcntl = pytest.importorskip("fcntl", reason="this system has no flock")

NAMES = ["T" + digit * 64 for digit in "0af"]


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A whole one: an index of three kernels, and their files."""
    (tmp_path / "ticache.tcb").write_bytes(b"\1\2".join(name.encode() for name in NAMES))
    for size, name in enumerate(NAMES):
        header = struct.pack("<4s4xQQ", b"TIC\0", size, 100)
        (tmp_path / f"{name}.tic").write_bytes(header + bytes(size + 100 + 64))
    yield tmp_path
    descriptor = kernel_cache._held.pop(tmp_path, None)
    if descriptor is not None:
        os.close(descriptor)


@pytest.fixture
def other(folder) -> Iterator[None]:
    """Another user of the folder."""
    descriptor = os.open(folder / "in-use", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    yield
    os.close(descriptor)


def kernels(folder: Path) -> int:
    return len(list(folder.glob("*.tic")))


def test_a_whole_folder_is_left_alone(folder, caplog):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    kernel_cache.claim(folder)
    kernel_cache.claim(folder)
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert after == before | {"in-use": b""}
    assert not caplog.records


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / f"{NAMES[1]}.tic"),
        lambda folder: (folder / f"{NAMES[1]}.tic").write_bytes(b""),
        lambda folder: (folder / f"{NAMES[1]}.tic").write_bytes(bytes(200)),
        lambda folder: (folder / f"{NAMES[2]}.tic").unlink(),
    ],
    ids=["cut", "empty", "garbage", "lost"],
)
def test_after_damage_everything_is_compiled_once_again(folder, damage, caplog):
    """The index goes, too: what it names is never written again."""
    damage(folder)
    kernel_cache.claim(folder)
    assert {file.name for file in folder.iterdir()} == {"in-use"}
    assert "damaged" in caplog.text


def test_damage_is_left_to_others_who_use_the_folder(folder, other):
    cut(folder / f"{NAMES[0]}.tic")
    kernel_cache.claim(folder)
    assert kernels(folder) == 3


def test_the_lock_of_a_killed_process_goes(folder):
    (folder / "ticache.lock").touch()
    kernel_cache.claim(folder)
    assert not (folder / "ticache.lock").exists()
    assert kernels(folder) == 3


@pytest.mark.parametrize(("age", "stays"), [(0, True), (kernel_cache.STALE_SECONDS + 60, False)])
def test_a_lock_among_others_goes_when_it_is_old(folder, other, age, stays):
    (folder / "ticache.lock").touch()
    then = time.time() - age
    os.utime(folder / "ticache.lock", (then, then))
    kernel_cache.claim(folder)
    assert (folder / "ticache.lock").exists() is stays


def test_a_user_of_the_folder_is_seen_by_others(folder):
    kernel_cache.claim(folder)
    descriptor = os.open(folder / "in-use", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_full_disk_is_said(folder, monkeypatch, caplog):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(kernel_cache.shutil, "disk_usage", lambda path: usage(1, 1, 3_000_000))
    with caplog.at_level(logging.WARNING):
        kernel_cache.claim(folder)
    assert f"3 MB are free in {folder}" in caplog.text


KERNEL = """
import os, signal, sys
from spqt_ti import backend
from spqt_ti.backend import ti
backend.start("cpu")
@ti.kernel
def double(a: ti.types.ndarray(dtype=ti.f32, ndim=1)):
    for i in a:
        a[i] = a[i] * 2.0
array = backend.ndarray(ti.f32, (8,))
array.fill(3.0)
double(array)
print(array.to_numpy().sum(), flush=True)
if sys.argv[1:] == ["kill"]:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kernels_are_kept_again_after_damage(tmp_path):
    """Taichi itself, in processes of its own: killed, locked out, and with a file cut off."""
    environment = os.environ | {"SPQT_CACHE_DIR": str(tmp_path / "cache")}
    script = tmp_path / "double.py"  # Taichi reads a kernel's source
    script.write_text(KERNEL)

    def run(*arguments: str) -> None:
        command = [sys.executable, str(script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
        assert (done.stdout, done.returncode) == ("48.0\n", -9 if arguments else 0), done.stderr

    run("kill")
    (folder,) = (tmp_path / "cache" / "kernels").iterdir()
    (folder / "ticache.lock").touch()
    run()
    kept = kernels(folder)
    assert kept > 0
    assert not (folder / "ticache.lock").exists()
    file = next(folder.glob("*.tic"))
    cut(file)
    for _ in range(2):
        run()
        assert kernels(folder) == kept
        assert kernel_cache._is_whole(folder)
