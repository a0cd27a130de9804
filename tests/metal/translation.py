"""Kernels as Metal would get them: Taichi's SPIR-V for Metal's capabilities, translated to MSL by SPIRV-Cross.

Taichi's code generator for SPIR-V, which comes with its Vulkan backend, is the one behind its Metal backend too: what
differs is the list of capabilities, given here. On a Mac, Taichi then calls the SPIRV-Cross that is built into it, with
the same options as here: MSL 2.3, bindings as decorated. Taichi must have been started on Vulkan.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from metal import limits
from metal.tasks import Argument, Kernel, MetalError, Task

from spqt_ti.backend import ti

_COMMANDS = {"spirv-cross": "spirv-cross", "spirv-val": "spirv-tools", "g++": "g++"}  # command -> Debian package
_SECONDS = 300

# Those of Apple GPUs of family 7 (M1) and later: Taichi 1.7.4, rhi/metal/metal_device.mm, collect_metal_device_caps.
_CAPABILITIES = [
    "spirv_version_1_3", "spirv_has_int8", "spirv_has_int16", "spirv_has_float16", "spirv_has_int64",
    "spirv_has_subgroup_basic", "spirv_has_subgroup_vote", "spirv_has_subgroup_ballot", "spirv_has_subgroup_arithmetic",
]  # fmt: skip

# Numbers in Taichi's enumerations.
_GLOBALS, _ARGS, _ARRAY = 1, 2, 5  # BufferType
_SCALARS = {1: np.dtype(np.float32), 5: np.dtype(np.int32), 10: np.dtype(np.uint32)}  # PrimitiveTypeID
_WRITTEN = 2  # ParameterAccess


def missing_tools() -> str | None:
    """What has to be installed to translate kernels and run them here; None if nothing."""
    lacking = [f"{command} (Debian: {package})" for command, package in _COMMANDS.items() if not shutil.which(command)]
    return f"needs {', '.join(lacking)}" if lacking else None


def checked(kernel: Any) -> Any:
    """A @ti.kernel, all of whose arguments are annotated with their types, as `translate` takes it."""
    primal = kernel._primal
    return primal.compiled_kernels[primal.ensure_compiled(*ti.aot.utils.produce_injected_args(primal))]


def translate(name: str, kernel: Any, folder: Path) -> Kernel:
    """Translate a kernel as Taichi has type-checked it, using `folder`, which must be empty.

    Raises MetalError for what Metal would not take, and for what these tests do not know.
    """
    known = ti.lang.enums.DeviceCapability
    # What ti.aot.Module wraps, which a process can have only one of.
    builder = ti.lang.impl.get_runtime().prog.make_aot_module_builder(
        ti.vulkan, [getattr(known, capability) for capability in _CAPABILITIES]
    )
    try:
        builder.add(name, kernel)
    except RuntimeError as error:
        raise MetalError(f"{name}: {error}") from error
    builder.dump(str(folder), "")
    (entry,) = json.loads((folder / "metadata.json").read_text())["kernels"]
    context = entry["ctx_attribs"]
    return Kernel(
        name,
        tuple(_arguments(name, context)),
        context["args_bytes_"],
        tuple(_task(task, folder) for task in entry["tasks_attribs"]),
        frozenset(item["key"][0] for item in context["arr_access"] if item["value"] & _WRITTEN),
    )


def _arguments(kernel: str, context: dict[str, Any]) -> list[Argument]:
    fields = context["args_type_"]["content"]["elements_"]
    attributes = {item["key"][0]: item["value"] for item in context["arg_attribs_vec_"]}
    arguments = []
    for i, field in enumerate(fields[: len(attributes)]):
        name, is_array, number = (attributes[i][key] for key in ("name", "is_array", "dtype"))
        if is_array and attributes[i]["field_dim"] != 1:
            raise MetalError(f"{kernel}: {name}: only one-dimensional arrays are known here")
        if not is_array and number not in _SCALARS:
            raise MetalError(f"{kernel}: {name}: only f32, i32 and u32 scalars are known here")
        arguments.append(Argument(name.lstrip("_"), is_array, None if is_array else _SCALARS[number], field["offset"]))
    return arguments


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
    names = {_GLOBALS: "globals", _ARGS: "args"}
    if buffer["type"] not in names:
        raise MetalError(f"a buffer of Taichi's type {buffer['type']}: neither fields nor results are known here")
    return names[buffer["type"]]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise MetalError(f"{command[0]}: {(done.stderr or done.stdout).strip().splitlines()[0]}")
    return done.stdout
