"""Taichi's folder of compiled kernels, made whole again after a process was killed or a disk was full.

Taichi 1.7.4 reads and writes its index (`ticache.tcb`) under a lock file, which a killed process leaves behind: whoever
comes later compiles again, at every start. So does everybody after a kernel's file (`.tic`) was cut off or lost, since
the index has its name. Here every process that uses the folder holds a shared lock of the operating system on a file in
it, which ends with the process. Who gets it alone knows that no other process is there.
"""

import atexit
import contextlib
import logging
import os
import re
import shutil
import struct
import tempfile
import time
from pathlib import Path

from spqt_ti.backend import guard
from spqt_ti.backend.taichi_import import PACKAGE, ti

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STALE_SECONDS = 600  # Taichi holds its lock for the time of writing a few MB
LEAST_FREE = 64 << 20  # bytes; a large model's kernels take a few MB
_HEADER = struct.Struct("<4s4xQQ")  # b"TIC\0", bytes of metadata, bytes of code; a SHA-256 in hexadecimal comes last
_HASH_BYTES = 64
_KERNEL_NAME = re.compile(rb"T[0-9a-f]{64}")
_log = logging.getLogger(__name__)
_held: dict[Path, int] = {}  # descriptors of the lock files: closed when the process ends


def claim(folder: Path) -> None:
    """Repair the folder of compiled kernels and say so in the log where the disk is too full to keep more.

    A lock file that nobody can hold goes, and so does everything if a kernel's file is damaged or missing.
    """
    alone = _lock(folder)
    lock_file = folder / "ticache.lock"
    with contextlib.suppress(OSError):
        if lock_file.exists() and (alone or time.time() - lock_file.stat().st_mtime > STALE_SECONDS):
            lock_file.unlink()
            _log.info("removed the lock of a process that was killed: %s", lock_file)
    with contextlib.suppress(OSError):
        if alone and not _is_whole(folder):
            for file in [*folder.glob("*.tic"), folder / "ticache.tcb"]:
                file.unlink(missing_ok=True)
            _log.warning("compiled kernels in %s were damaged: they are compiled once again", folder)
    _share(folder)
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        if free < LEAST_FREE:
            _log.warning("%.0f MB are free in %s: new kernels may be compiled at each start", free / 1e6, folder)


def temporary_folder() -> Path:
    """A new folder that goes when this process ends. OSError where there is no place for it."""
    folder = Path(tempfile.mkdtemp(prefix="spqt-kernels-"))
    atexit.register(_remove, folder)
    return folder


def _remove(folder: Path) -> None:
    if guard.forked():
        return
    ti.reset()  # it writes its kernels, which it would do later otherwise
    shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> bool:
    """Take the folder's lock, alone if no other process has it; returns whether that is so."""
    if fcntl is None:
        return False
    try:
        if folder not in _held:
            _held[folder] = os.open(folder / "in-use", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(_held[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # another process has it, or the file system has no locks
        return False


def _share(folder: Path) -> None:
    """From now on others may use the folder, too."""
    if folder in _held and fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(_held[folder], fcntl.LOCK_SH)


def _is_whole(folder: Path) -> bool:
    """Whether every kernel that the index names is there, as long as its header says. Of Taichi's format only."""
    if PACKAGE != "taichi":
        return True
    index = folder / "ticache.tcb"
    names = {name.decode() for name in _KERNEL_NAME.findall(index.read_bytes())} if index.exists() else set()
    files = {file.stem: file for file in folder.glob("*.tic")}
    return names <= files.keys() and all(_has_its_length(files[name]) for name in names)


def _has_its_length(file: Path) -> bool:
    with file.open("rb") as opened:
        header = opened.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return False
    magic, metadata, code = _HEADER.unpack(header)
    return magic == b"TIC\0" and file.stat().st_size == _HEADER.size + metadata + code + _HASH_BYTES
