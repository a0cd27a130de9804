"""Kernels as Metal would get them: Taichi's SPIR-V for Metal's capabilities, translated to MSL by SPIRV-Cross.

Taichi's Metal backend does the same on a Mac at run time, with the SPIRV-Cross that is built into it and these options:
MSL 2.3, bindings as decorated.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from metal import limits
from metal.tasks import Argument, Kernel, MetalError, Task

_TESTS = Path(__file__).parent.parent
_COMMANDS = {"spirv-cross": "spirv-cross", "spirv-val": "spirv-tools", "g++": "g++"}  # command -> Debian package
_SECONDS = 300


@dataclass(frozen=True)
class Translation:
    """What came of a set of kernels: those that Metal could take, and why the others could not."""

    kernels: dict[str, Kernel]
    failures: dict[str, str]

    def kernel(self, name: str) -> Kernel:
        """Raises MetalError for a kernel that could not be translated."""
        if name in self.failures:
            raise MetalError(f"{name}: {self.failures[name]}")
        return self.kernels[name]


def missing_tools() -> str | None:
    """Why kernels cannot be translated and run here, None if they can."""
    lacking = [f"{command} (Debian: {package})" for command, package in _COMMANDS.items() if not shutil.which(command)]
    return f"needs {', '.join(lacking)}" if lacking else None


def translate(function: str, folder: Path) -> Translation:
    """Compile and translate the kernels that `function` ("module:name", importable from tests/) returns, in `folder`.

    Raises MetalError when the compiling process fails as a whole.
    """
    command = [sys.executable, Path(__file__).with_name("compile_kernels.py"), function, folder]
    paths = os.pathsep.join([str(_TESTS), str(_TESTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "SPQT_TAICHI": "taichi"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False)
    if done.returncode:
        raise MetalError(f"{function} does not compile: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    metadata = json.loads((folder / "metadata.json").read_text())
    failures = json.loads((folder / "failures.json").read_text())
    kernels = {}
    for entry in metadata["kernels"]:
        try:
            kernels[entry["name"]] = _kernel(entry, folder)
        except MetalError as error:
            failures[entry["name"]] = str(error)
    return Translation(kernels, failures)


def _kernel(entry: dict[str, Any], folder: Path) -> Kernel:
    context = entry["ctx_attribs"]
    attributes = {item["key"][0]: item["value"] for item in context["arg_attribs_vec_"]}
    fields = context["args_type_"]["content"]["elements_"] if attributes else []
    arguments = tuple(_argument(attributes[i], field) for i, field in enumerate(fields))
    tasks = tuple(_task(task, folder) for task in entry["tasks_attribs"])
    return Kernel(entry["name"], arguments, context["args_bytes_"], tasks)


# Numbers of Taichi's PrimitiveTypeID.
_SCALARS = {1: np.dtype(np.float32), 5: np.dtype(np.int32), 10: np.dtype(np.uint32)}


def _argument(attributes: dict[str, Any], field: dict[str, Any]) -> Argument:
    if not attributes["is_array"]:
        if attributes["dtype"] not in _SCALARS:
            raise MetalError(f"argument {attributes['name']}: only f32, i32 and u32 scalars are known here")
        return Argument(attributes["name"], False, _SCALARS[attributes["dtype"]], field["offset"])
    if attributes["field_dim"] != 1 or attributes["element_shape"]:
        raise MetalError(f"argument {attributes['name']}: only one-dimensional arrays of scalars are known here")
    # Their number of elements comes first in what args has of an array.
    return Argument(attributes["name"], True, None, field["offset"])


# Numbers of Taichi's BufferType.
_GLOBALS, _ARGS, _RETS, _ARRAY = 1, 2, 3, 5


def _task(task: dict[str, Any], folder: Path) -> Task:
    spirv = folder / f"{task['name']}.spv"
    _run("spirv-val", "--target-env", "vulkan1.1", str(spirv))
    msl = _run("spirv-cross", "--msl", "--msl-version", "20300", "--msl-decoration-binding", str(spirv))
    spirv.with_suffix(".metal").write_text(msl)
    threads = task["advisory_num_threads_per_group"]
    found = re.search(r"gl_WorkGroupSize \[\[maybe_unused\]\] = uint3\((\d+)u", msl)
    if found is None or int(found[1]) != threads:
        raise MetalError(f"{task['name']}: groups of {threads} threads according to Taichi, but not in the MSL")
    groups = -(-task["advisory_total_num_threads"] // threads)
    bindings = {b["binding"]: _buffer(b["buffer"]) for b in task["buffer_binds"]}
    translated = Task(task["name"], msl, threads, groups, bindings)
    limits.check(translated)
    return translated


def _buffer(buffer: dict[str, Any]) -> str | int:
    if buffer["type"] == _ARRAY:
        return buffer["root_id"][0]
    names = {_GLOBALS: "globals", _ARGS: "args", _RETS: "rets"}
    if buffer["type"] not in names:
        raise MetalError(f"a buffer of Taichi's type {buffer['type']}: fields are not known here, only ndarrays")
    return names[buffer["type"]]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise MetalError(f"{command[0]}: {(done.stderr or done.stdout).strip().splitlines()[0]}")
    return done.stdout
