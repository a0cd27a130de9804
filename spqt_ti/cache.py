"""The user's cache folder: fetched models, quantised ones, calibrations, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from spqt_ti.errors import CacheError


def cache_dir() -> Path:
    """SPQT_CACHE_DIR, else the user's cache folder for this package. Not created here.

    Raises CacheError where the user has no home folder. Never below the current folder, unless that was chosen: what
    is in the cache is run.
    """
    chosen = os.environ.get("SPQT_CACHE_DIR")
    try:
        folder = Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("spqt-ti"))
    except RuntimeError as error:
        raise CacheError(f"no cache folder: {error} Set SPQT_CACHE_DIR to a folder of yours") from error
    if not chosen and not folder.is_absolute():
        raise CacheError(f"no cache folder: {folder} is not absolute; set HOME, or SPQT_CACHE_DIR to a folder of yours")
    return folder


def private_folder(name: str) -> Path:
    """A folder in the cache folder that the user alone can enter (mode 0700), made if it is not there.

    For what is run or believed later, such as compiled kernels. Raises OSError where it cannot be made, and
    PermissionError where somebody else owns it and could change what is in it.
    """
    root = cache_dir()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = root / name
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid"):  # Windows keeps a user's folders private on its own
        state = folder.stat()
        if state.st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user; SPQT_CACHE_DIR chooses another cache folder")
        if state.st_mode & 0o077:
            folder.chmod(0o700)
    return folder
