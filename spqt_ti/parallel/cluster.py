"""Evaluations on a Dask cluster (extra `cluster`). A worker that is lost loses the items it had, and others do them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spqt_ti.errors import ExecutionError
from spqt_ti.parallel.executors import Result
from spqt_ti.parallel.study import Item, Request, evaluate

_RETRIES = 2  # of an item whose worker was lost, beyond the scheduler's own
_TIMEOUT = 10  # seconds, to find the scheduler


class DaskCluster:
    """The workers of the Dask scheduler at `address` ("tcp://host:8786"). They need the same code of spqt_ti, and
    the model (see ModelReference).

    ExecutionError where Dask is not installed, the scheduler cannot be reached or has no workers, and where an item
    loses one worker after the other.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise ExecutionError(f"--cluster needs Dask ({error}): pip install 'spqt-ti[cluster]'") from error
        self.address = address
        try:
            self._client: Any = Client(address, timeout=_TIMEOUT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ExecutionError(f"{address}: no Dask scheduler answers there ({error})") from error

    def run(self, request: Request, items: Sequence[Item]) -> Iterator[Result]:
        """See Executor."""
        from distributed import KilledWorker, as_completed

        self._check_workers()
        futures = {}
        try:
            for index, item in enumerate(items):
                futures[self._client.submit(evaluate, request, item, pure=False, retries=_RETRIES)] = index
            for future in as_completed(list(futures), loop=self._client.loop):
                yield futures.pop(future), future.result()
                future.release()
        except KilledWorker as error:
            raise ExecutionError(
                f"{self.address}: workers die again and again ({error}); is there enough memory?"
            ) from error
        finally:
            self._client.cancel(list(futures))

    def close(self) -> None:
        """Leave the cluster, which goes on."""
        self._client.close()

    def _check_workers(self) -> None:
        found = self._client.run(code_hash)
        if not found:
            raise ExecutionError(
                f"{self.address}: the scheduler has no workers; start some with `dask worker {self.address}`"
            )
        for worker, code in found.items():
            if code != code_hash():
                raise ExecutionError(
                    f"{worker} has other code of spqt_ti ({code}) than this process ({code_hash()}), so results could "
                    "differ; install the same there"
                )


@functools.cache
def code_hash() -> str:
    """Of all modules of this package, as the process has them on its disk."""
    root = Path(__file__).resolve().parents[1]
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]
