"""MSL run on the CPU: compiled as C++ against include/, one fiber per thread, every access checked.

A launch fails, with the task and the place, where a barrier is not reached by all threads of a group, an index leaves
its array, two threads race for an element, or threadgroup memory is read before it is written.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from metal.tasks import Kernel, MetalError, Task

_INCLUDE = Path(__file__).parent / "include"
_COMPILER = [
    "g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{_INCLUDE}",
    "-fsingle-precision-constant",  # MSL's 1.0 is a float
    "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-fno-gnu-unique",
    "-Wno-attributes",
]  # fmt: skip
_GLOBALS_BYTES = 1 << 20  # as in Taichi
_MAX_BINDINGS = 32

_BUFFER_STRUCT = re.compile(r"(struct \w+\n\{\n\s+)(\w+) (_m0)\[1\];")
_SHARED_ARRAY = re.compile(r"^(\s*)threadgroup (\w+) (\w+)\[(\d+)\];$", flags=re.MULTILINE)
_SIGNATURE = re.compile(r"^kernel void main0\((.*)\)$", flags=re.MULTILINE)
_BUFFER = re.compile(r"(constant|device) (\w+)& \w+ \[\[buffer\((\d+)\)\]\]")
_POSITIONS = {"thread_position_in_grid": "thread", "threadgroups_per_grid": "groups"}


class LaunchError(Exception):
    """What a kernel did wrong while it ran."""


class _Memory(ctypes.Structure):
    """emulator::Memory of include/checked_memory.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("bytes", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("log", ctypes.c_void_p),
        ("granule", ctypes.c_uint32),
        ("shared", ctypes.c_bool),
    ]


class Emulator:
    """A kernel, ready to be launched."""

    def __init__(self, kernel: Kernel, library: ctypes.CDLL) -> None:
        self.kernel = kernel
        self._library = library

    def launch(self, *values: np.ndarray | float, seed: int = 1) -> None:
        """Run all tasks; arrays are changed in place. `seed` draws the order of groups and threads (0: ascending).

        Raises LaunchError at the first thing that goes wrong.
        """
        arrays = self._arrays(values)
        # By address, because an array may be given twice and have several bindings.
        written = {arrays[what].ctypes.data for what in (*self.kernel.written, "globals")}
        for task in self.kernel.tasks:
            memories, logs = (_Memory * _MAX_BINDINGS)(), {}
            for index, what in task.bindings.items():
                array, log = arrays[what], None
                address = array.ctypes.data
                if address in written:
                    log = logs.setdefault(address, np.zeros((array.size, 4), np.uint32)).ctypes.data
                name = what if isinstance(what, str) else self.kernel.arguments[what].name
                memories[index] = _Memory(name.encode(), address, array.nbytes, log, array.itemsize, False)
            run = getattr(self._library, f"run_{task.name}")
            run.restype = ctypes.c_char_p
            message = run(memories, task.groups, task.threads, seed).decode()
            if message:
                raise LaunchError(f"{task.name}: {message}")

    def _arrays(self, values: tuple[np.ndarray | float, ...]) -> dict[str | int, np.ndarray]:
        """What each buffer of the tasks is bound to."""
        if len(values) != len(self.kernel.arguments):
            raise TypeError(f"{self.kernel.name} takes {len(self.kernel.arguments)} arguments, not {len(values)}")
        args = np.zeros(max(1, self.kernel.args_bytes // 4), np.uint32)
        arrays: dict[str | int, np.ndarray] = {"args": args, "globals": np.zeros(_GLOBALS_BYTES // 4, np.uint32)}
        for i, (argument, value) in enumerate(zip(self.kernel.arguments, values, strict=True)):
            if argument.is_array:
                if not (isinstance(value, np.ndarray) and value.ndim == 1 and value.flags.c_contiguous):
                    raise TypeError(f"{self.kernel.name}: {argument.name} is a one-dimensional, contiguous array")
                arrays[i] = value
                args[argument.offset // 4] = value.size
            else:
                args[argument.offset // 4] = np.array(value, argument.dtype).view(np.uint32)
        return arrays


def build(kernels: Iterable[Kernel], folder: Path) -> dict[str, Emulator]:
    """Compile kernels, in `folder`. Raises MetalError where one uses what include/ does not have."""
    kernels = list(kernels)
    source = folder / "kernels.cpp"
    tasks = [task for kernel in kernels for task in kernel.tasks]
    source.write_text("\n".join(['#include "metal_stdlib.h"', *map(_as_cpp, tasks)]))
    library = source.with_suffix(".so")
    done = subprocess.run([*_COMPILER, source, "-o", library], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error:" in line]
        raise MetalError(f"MSL does not compile as C++: {errors[0] if errors else done.stderr}")
    return {kernel.name: Emulator(kernel, ctypes.CDLL(str(library))) for kernel in kernels}


def _as_cpp(task: Task) -> str:
    """A task's MSL as C++ in a namespace of its own, and the function that runs it."""
    msl = re.sub("^#.*$", "", task.msl, flags=re.MULTILINE)  # emptied, so that lines keep their numbers
    msl = _SHARED_ARRAY.sub(r'\1static emulator::Shared<\2, \4> \3("\3");', msl)
    msl = _BUFFER_STRUCT.sub(r"\1emulator::Array<\2> \3;", msl).replace("(threadgroup ", "(")
    if "threadgroup " in msl:
        raise MetalError(f"{task.name}: threadgroup memory that is not an array of numbers is not known here")
    lines = list(_arguments(task))
    names = ", ".join(f"p{i}" for i in range(len(lines)))
    declarations = "\n".join(f"    {kind} p{i}{value};" for i, (kind, value) in enumerate(lines))
    return f"""
namespace {task.name} {{
#line 1 "{task.name}.metal"
{msl}
#line 1 "{task.name}.launch"
void thread(emulator::Memory* buffers, uint32_t thread, uint32_t groups) {{
{declarations}
    main0({names});
}}
}}
extern "C" const char* run_{task.name}(emulator::Memory* buffers, uint32_t groups, uint32_t threads, uint32_t seed) {{
    return emulator::run({{{task.name}::thread, buffers, groups, threads, seed}});
}}
"""


def _arguments(task: Task) -> Iterator[tuple[str, str]]:
    """Type and initial value of each of main0's arguments."""
    signature = _SIGNATURE.search(task.msl)
    if signature is None:
        raise MetalError(f"{task.name}: no main0 in its MSL")
    for parameter in re.split(r",(?![^(\[]*[\])])", signature[1]):
        buffer = _BUFFER.fullmatch(parameter.strip())
        if buffer and buffer[1] == "constant":
            yield f"const {buffer[2]}&", f" = *reinterpret_cast<const {buffer[2]}*>(buffers[{buffer[3]}].bytes)"
        elif buffer:
            yield buffer[2], f"{{{{&buffers[{buffer[3]}]}}}}"
        else:
            position = re.fullmatch(r"uint3 \w+ \[\[(\w+)\]\]", parameter.strip())
            if position is None or position[1] not in _POSITIONS:
                raise MetalError(f"{task.name}: parameter {parameter.strip()} is not known here")
            yield "metal::uint3", f"({_POSITIONS[position[1]]})"
