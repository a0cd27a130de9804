"""--threads beside --backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spqt_ti.errors import BackendError

if TYPE_CHECKING:
    from spqt_ti.backend import Runtime


def workers_of(runtime: Runtime, threads: int | None) -> int | None:
    """`runtime.workers(threads)`. Raises BackendError for threads on a GPU."""
    workers = runtime.workers(threads)
    if threads is not None and workers is None:
        raise BackendError(f"--threads is for the CPU; {runtime.name} has no worker threads: leave it out")
    return workers
