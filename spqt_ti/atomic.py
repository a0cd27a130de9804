"""Files that appear whole or not at all, written under a temporary name beside their own and then renamed; and locks
for what several processes change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the temporary path to write to; it becomes `path` at the end, or is removed if anything is raised.

    The folder must exist. OSError of writing and of renaming passes through, for the caller to say what was lost; so it
    is for a folder, and for a device or a pipe, which the file would take the place of.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path` with `.lock` behind its name, which goes afterwards; yields whether nobody else has it.

    Without `wait` false where somebody has it. False as well where the system or the file system has no locks. The
    folder must exist.
    """
    name = path.with_name(f"{path.name}.lock")
    with contextlib.ExitStack() as opened:
        alone = False
        while not alone and fcntl is not None:
            file = opened.enter_context(open(name, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                break
            alone = _is_still(name, file.fileno())  # who had it before may have removed it since it was opened
        try:
            yield alone
        finally:
            if alone:
                name.unlink(missing_ok=True)


def _is_still(name: Path, descriptor: int) -> bool:
    """Whether a name is that of an open file."""
    try:
        return os.path.samestat(name.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
