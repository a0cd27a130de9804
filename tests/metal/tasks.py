"""A kernel as Metal gets it: its arguments and its tasks, each a program in Metal's shading language (MSL)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class MetalError(Exception):
    """What a kernel does that Metal does not allow, or that these tests do not know."""


@dataclass(frozen=True)
class Argument:
    """A kernel's argument: an array (`dtype` None: whatever the array has) or a scalar, and its first byte in args."""

    name: str
    is_array: bool
    dtype: np.dtype | None
    offset: int


@dataclass(frozen=True)
class Task:
    """One dispatch: its MSL, its grid, and which buffer each binding is ("args", "globals" or an argument's
    index).
    """

    name: str
    msl: str
    threads: int  # of a group
    groups: int
    bindings: dict[int, str | int]


@dataclass(frozen=True)
class Kernel:
    """A kernel's arguments and the tasks it consists of, in order. `args_bytes` is the size of its args buffer;
    `written`: the arrays, by their places among the arguments, that a task writes to.
    """

    name: str
    arguments: tuple[Argument, ...]
    args_bytes: int
    tasks: tuple[Task, ...]
    written: frozenset[int]
