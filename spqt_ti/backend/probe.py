"""What this machine can do, found out by trying: each backend starts and computes in a process of its own.

In this one it could not: a process has one runtime, and a broken driver may take the process with it.
"""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from spqt_ti.backend import BACKENDS, start, ti
from spqt_ti.children import python_command
from spqt_ti.errors import BackendError, SpqtError

_SECONDS = 120
_VALUES = 1024


@dataclass(frozen=True)
class Finding:
    """A backend that works here (`device`, `capabilities`), or why it does not (`reason`)."""

    backend: str
    device: str | None
    capabilities: dict[str, Any] | None
    reason: str | None

    @property
    def works(self) -> bool:
        return self.reason is None


def probe_all() -> list[Finding]:
    """A finding for every backend there is."""
    return [probe(backend) for backend in BACKENDS]


def probe(backend: str) -> Finding:
    """Start `backend` in another process and compute something there."""
    command = python_command("spqt_ti.backend.probe", backend)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding(backend, None, None, f"{backend}: no answer within {_SECONDS} s; is its driver broken?")
    answer = done.stdout.strip().splitlines()
    if done.returncode or not answer:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(backend, None, None, f"{backend}: the process ended with code {done.returncode}: {last}")
    return Finding(**json.loads(answer[-1]))


@ti.kernel
def _count_up(values: ti.types.ndarray(dtype=ti.i32, ndim=1)):
    for i in range(_VALUES):
        values[i] = 3 * i + 1


def _answer(backend: str) -> Finding:
    try:
        runtime = start(backend)
        values = ti.ndarray(ti.i32, (_VALUES,))
        _count_up(values)
        if values.to_numpy().tolist() != list(range(1, 3 * _VALUES, 3)):
            raise BackendError(f"{backend}: {runtime.device} computes wrong results; update its driver")
    except SpqtError as error:
        return Finding(backend, None, None, str(error))
    return Finding(backend, runtime.device, dataclasses.asdict(runtime.capabilities), None)


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_answer(sys.argv[1]))))
