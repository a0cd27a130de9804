"""Directories that appear whole: made under a hidden name beside their own, then exchanged with what was there.

A hidden name tells what the directory is, whose and of which model: `.MODEL.partial-HOST-PROCESS-RANDOM` is being
written, `.MODEL.old-HOST-PROCESS-RANDOM` has been moved away. What a killed process left is found by its number.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["discard", "remove_leftovers", "replace_directory", "restore", "sibling"]

_NAME = re.compile(r"\.(?P<model>.+)\.(?P<kind>partial|old)-(?P<host>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-[0-9a-f]{8}")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # Linux
_RENAME_SWAP = 2  # macOS
# A file system, or a system, that cannot exchange says one of these.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EPERM}


def sibling(path: Path, kind: str) -> Path:
    """A new hidden name in the same directory, so that a rename stays within one file system."""
    return path.with_name(f".{path.name}.{kind}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def replace_directory(temporary: Path, destination: Path, overwrite: bool = True) -> None:
    """Give a finished directory its name and delete what had it; OSError leaves the destination as it was.

    In one step where the system can. Elsewhere there is a moment in which the name is free: `restore` mends what a
    process left that was killed then. Without `overwrite` OSError where something has the name, unless it is empty.
    """
    if not overwrite:
        with contextlib.suppress(OSError):  # missing, or not empty: the rename says so
            destination.rmdir()
    if not overwrite or not destination.exists():
        os.rename(temporary, destination)
        return
    if _exchange(temporary, destination):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    old = sibling(destination, "old")
    try:
        os.rename(destination, old)
        os.rename(temporary, destination)
    except BaseException:
        if not destination.exists() and old.exists():
            os.rename(old, destination)
        raise
    finally:
        if destination.exists():
            shutil.rmtree(old, ignore_errors=True)


def discard(directory: Path) -> None:
    """Delete a directory: its name is free at once, for whoever writes it anew. OSError where it cannot be moved."""
    if directory.exists():
        old = sibling(directory, "old")
        os.rename(directory, old)
        shutil.rmtree(old, ignore_errors=True)


def restore(destination: Path) -> None:
    """Put back what a killed process had moved away, if nothing has the name."""
    if destination.exists():
        return
    for path, kind in _leftovers(destination.parent, destination.name):
        if kind == "old":
            with contextlib.suppress(OSError):  # somebody else was faster
                os.rename(path, destination)


def remove_leftovers(folder: Path, model: str | None = None) -> None:
    """Delete what killed processes left in a folder, of one model or of all; what is of use is put back first."""
    for path, _ in list(_leftovers(folder, model)):
        match = _NAME.fullmatch(path.name)
        assert match
        restore(folder / match["model"])
        shutil.rmtree(path, ignore_errors=True)


def _leftovers(folder: Path, model: str | None) -> Iterator[tuple[Path, str]]:
    """(directory, kind) of those whose process is gone."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return
    for path in paths:
        match = _NAME.fullmatch(path.name)
        if match and model in (None, match["model"]) and match["host"] == _host() and not _lives(int(match["process"])):
            yield path, match["kind"]


def _lives(process: int) -> bool:
    """Whether there is a process of this number; true where that cannot be found out."""
    if sys.platform == "win32":
        return process == os.getpid() or _lives_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _lives_on_windows(process: int) -> bool:
    """There, `os.kill` would end it."""
    query, still_active = 0x1000, 259
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(query, False, process)
    if not handle:
        return bool(kernel.GetLastError() == 5)  # access denied: it is somebody else's
    code = ctypes.c_ulong()
    known = kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return not known or code.value == still_active


def _host() -> str:
    """This machine, for a folder that several share: a process number means nothing on another one."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step. False where the system or the file system cannot; OSError for other failures."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(os.fsencode(one), os.fsencode(other), _RENAME_SWAP)
        else:
            failed = library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    except (AttributeError, OSError, TypeError):  # no such function here
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))
