"""What Metal allows a task: limits that Taichi, spirv-val and SPIRV-Cross know nothing of.

They do refuse f64, atomics on 64 bits and on f32 in threadgroup memory, and subgroup operations (translation.py). From
Apple's Metal Feature Set Tables, Apple silicon (families 7 and later), and the Metal Shading Language
Specification.
"""

from __future__ import annotations

import re

from metal.tasks import MetalError, Task

THREADS = 1024
THREADGROUP_BYTES = 32 * 1024
BUFFERS = 31  # their indices are 0..30
_BYTES = {"char": 1, "uchar": 1, "bool": 1, "short": 2, "ushort": 2, "half": 2, "int": 4, "uint": 4, "float": 4}


def check(task: Task) -> None:
    """Raise MetalError where a task breaks a limit."""
    if task.threads > THREADS:
        raise MetalError(f"{task.name}: {task.threads} threads in a group; Metal has {THREADS}")
    used = threadgroup_bytes(task)
    if used > THREADGROUP_BYTES:
        raise MetalError(f"{task.name}: {used} bytes of threadgroup memory; Metal has {THREADGROUP_BYTES}")
    indices = buffer_indices(task)
    if len(indices) > BUFFERS or max(indices, default=0) >= BUFFERS:
        raise MetalError(f"{task.name}: buffer index {max(indices)}; Metal has indices up to {BUFFERS - 1}")


def threadgroup_bytes(task: Task) -> int:
    """Threadgroup memory that a task declares, in bytes."""
    total = 0
    for kind, _, count in shared_arrays(task.msl):
        if kind not in _BYTES:
            raise MetalError(f"{task.name}: threadgroup memory of type {kind}, whose size is not known here")
        total += _BYTES[kind] * int(count)
    return total


def shared_arrays(msl: str) -> list[tuple[str, str, str]]:
    """Type, name and number of elements of every array in threadgroup memory."""
    return re.findall(r"^\s*threadgroup (\w+) (\w+)\[(\d+)\];$", msl, flags=re.MULTILINE)


def buffer_indices(task: Task) -> set[int]:
    """Buffer indices that a task's parameters have."""
    return {int(index) for index in re.findall(r"\[\[buffer\((\d+)\)\]\]", task.msl)}
