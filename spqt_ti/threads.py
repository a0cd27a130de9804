"""How many workers this process may use. No Taichi here: `spqt info` asks too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def available_threads() -> int:
    """Number of CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Let NumPy's BLAS use `count` threads inside. (macOS's Accelerate decides by itself.)"""
    import threadpoolctl

    with threadpoolctl.threadpool_limits(count, "blas"):
        yield
