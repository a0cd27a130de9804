"""What a backend can do: kernels and the runner ask this table, never for a backend's name."""

from __future__ import annotations

from dataclasses import dataclass

from spqt_ti.backend.devices import Device


@dataclass(frozen=True)
class Capabilities:
    """Limits that kernels are written against. Sizes in bytes; 0 where there is no such thing.

    `groups`: threads come in groups with shared memory and barriers (SIMT); otherwise they are a few workers that each
    run a whole loop. `processors`: that run groups side by side, None where the driver does not tell. `host_memory`: an
    ndarray's memory can be read and written in place. `memory` and `max_array_bytes` are None where only the system
    knows.
    """

    groups: bool
    host_memory: bool
    shared_memory: int
    max_group: int
    max_arrays_per_task: int
    memory: int | None
    max_array_bytes: int | None
    processors: int | None = None


# Taichi's: an ndarray's elements, words in all that is large here, are counted in i32.
MAX_ELEMENTS = 2**31 - 1

WORKERS = Capabilities(
    groups=False, host_memory=True, shared_memory=0, max_group=1, max_arrays_per_task=64, memory=None,
    max_array_bytes=None,
)  # fmt: skip


def of_device(backend: str, device: Device) -> Capabilities:
    """Capabilities of a GPU backend on `device`.

    Metal's number of arrays is from Taichi's source: buffers are bound by number up to 31, two of which Taichi takes.
    """
    return Capabilities(
        groups=True,
        host_memory=False,
        shared_memory=device.shared_memory,
        max_group=min(1024, device.max_group),
        max_arrays_per_task=29 if backend == "metal" else 64,
        memory=device.memory,
        max_array_bytes=min(device.max_array_bytes, 4 * MAX_ELEMENTS),
        processors=device.processors,
    )
