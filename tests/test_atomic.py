"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from spqt_ti import atomic
from spqt_ti.atomic import locked, written_whole


def test_a_new_file_and_a_replaced_one(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    for text in ("first", "second"):
        with written_whole(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent == tmp_path  # a rename works inside one file system only
            assert not path.exists() or path.read_text() != text
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")

    def interrupted() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    """A device's place would be taken where the user may write there: root may."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("."), Path("/")):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"), written_whole(path) as temporary:
            temporary.write_text("x")
    assert (tmp_path / "pipe").is_fifo()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"), written_whole(tmp_path / "missing" / "file") as temporary:
        temporary.write_text("x")


needs_locks = pytest.mark.skipif(atomic.fcntl is None, reason="a system without fcntl has no such locks")


@needs_locks
def test_a_lock_is_one_caller_s_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with locked(path) as first:
        assert first
        for _ in range(2):  # who did not get it leaves it to the one that has it
            with locked(path, wait=False) as second:
                assert not second
    assert list(tmp_path.iterdir()) == []
    with locked(path, wait=False) as third:
        assert third


@needs_locks
def test_a_lock_file_that_went_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened while another one had it, locked when that one had removed it: a third may hold a new file then."""
    path, flock, opened = tmp_path / "file", atomic.fcntl.flock, []

    def removed_meanwhile(file: object, operation: int) -> None:
        if not opened:
            os.unlink(f"{path}.lock")
        opened.append(file)
        flock(file, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", removed_meanwhile)
    with locked(path) as alone:
        assert (alone, len(opened)) == (True, 2)
        assert os.path.samestat(os.stat(f"{path}.lock"), os.fstat(opened[1].fileno()))


@needs_locks
def test_many_callers_wait_for_one_another(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "file", [], []

    def work() -> None:
        for _ in range(20):
            with locked(path) as alone:
                assert alone
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(most), max(most)) == (120, 1)
