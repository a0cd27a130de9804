"""The user's cache folder: fetched models, quantised ones, calibrations, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """SPQT_CACHE_DIR, else the user's cache folder for this package. Not created here."""
    chosen = os.environ.get("SPQT_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("spqt-ti"))
