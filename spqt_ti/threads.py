"""How many workers this process may use. No Taichi here: `spqt info` asks too."""

from __future__ import annotations

import os


def available_threads() -> int:
    """Number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
