"""Run a Python module with Taichi compiling for another x86-64 CPU than this one, whose instructions it must have.

    python bench/codegen_cpu.py haswell -m spqt_ti bench decode smollm2-135m     # as on a CPU with AVX2 and no AVX-512

Taichi's compiler asks LLVM for the CPU that it runs on, and has no option. The two functions that it asks are
overwritten in memory: one returns the name, the other no features beside that CPU's own. Names: those of `llc-15
-march=x86-64 -mcpu=help`. For tests and measurements only. Needs `nm` (binutils). Other processes that the module
starts are not changed.
"""

import ctypes
import mmap
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_NAME = "_ZN4llvm3sys14getHostCPUNameEv"
_FEATURES = "_ZN4llvm3sys18getHostCPUFeaturesERNS_9StringMapIbNS_15MallocAllocatorEEE"
_kept: list[object] = []  # what the overwritten code points to


def compile_for(cpu: str) -> None:
    """Let every kernel that this process compiles from now on be for `cpu` (a name of LLVM's)."""
    import taichi  # noqa: F401

    name = ctypes.create_string_buffer(cpu.encode())
    _kept.append(name)
    address = ctypes.addressof(name).to_bytes(8, "little")
    length = len(cpu).to_bytes(4, "little")
    _overwrite(_NAME, b"\x48\xb8" + address + b"\xba" + length + b"\xc3")  # mov rax, name; mov edx, length; ret
    _overwrite(_FEATURES, b"\x31\xc0\xc3")  # xor eax, eax; ret


def _overwrite(symbol: str, code: bytes) -> None:
    library = _library()
    symbols = subprocess.run(["nm", library], check=True, capture_output=True, text=True).stdout
    offset = re.search(rf"^([0-9a-f]+) t {symbol}$", symbols, re.MULTILINE)
    if offset is None:
        raise SystemExit(f"{library.name} has no symbol {symbol}: another build of Taichi")
    first = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(library)))
    place = int(first.split("-")[0], 16) + int(offset[1], 16)
    page = place // mmap.PAGESIZE * mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(page, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        raise SystemExit(f"the code of {library.name} cannot be changed: errno {ctypes.get_errno()}")
    ctypes.memmove(place, code, len(code))
    protect(page, 2 * mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)


def _library() -> Path:
    found = find_spec("taichi")
    assert found is not None
    assert found.origin is not None
    return next((Path(found.origin).parent / "_lib/core").resolve().glob("taichi_python*.so"))


def main() -> None:
    """Run what the command line names."""
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        raise SystemExit(__doc__)
    cpu, *rest = sys.argv[1:]
    compile_for(cpu)
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
