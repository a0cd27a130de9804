"""python compile_kernels.py FUNCTION FOLDER: the kernels that FUNCTION ("module:name") returns, as SPIR-V for Metal.

A process of its own, because Taichi's code generator for SPIR-V comes with its Vulkan backend. That generator is the
one behind its Metal backend too: what differs is the list of capabilities, given here. FUNCTION takes no arguments and
returns a dict from name to kernel. FOLDER gets Taichi's AOT module, one .spv per task, and failures.json: name of a
kernel that does not compile -> why.
"""

import importlib
import json
import sys
from pathlib import Path

from spqt_ti import backend
from spqt_ti.backend import ti

# Those of Apple GPUs of family 7 (M1) and later: Taichi 1.7.4, rhi/metal/metal_device.mm, collect_metal_device_caps.
CAPABILITIES = [
    "spirv_version_1_3", "spirv_has_int8", "spirv_has_int16", "spirv_has_float16", "spirv_has_int64",
    "spirv_has_subgroup_basic", "spirv_has_subgroup_vote", "spirv_has_subgroup_ballot", "spirv_has_subgroup_arithmetic",
]  # fmt: skip


def main(function: str, folder: Path) -> None:
    module_name, name = function.split(":")
    backend.start("vulkan")
    kernels = getattr(importlib.import_module(module_name), name)()
    known = ti.lang.enums.DeviceCapability
    module = ti.aot.Module(ti.vulkan, caps=[getattr(known, capability) for capability in CAPABILITIES])
    failures = {}
    for name, kernel in kernels.items():
        try:
            module.add_kernel(kernel, name=name)
        except Exception as error:  # Taichi raises RuntimeError and its own; whatever it is, it belongs to the kernel
            failures[name] = str(error).strip().splitlines()[-1]
    folder.mkdir(parents=True)
    module.save(str(folder))
    (folder / "failures.json").write_text(json.dumps(failures))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
