"""LLVM functions for what Taichi cannot express on x86-64: prefetch, fused multiply-add, giving way while waiting, and,
where the CPU has AVX-512 VNNI, sums of 16-bit products.

Each `.bc` is assembled from the `.ll` beside it. They are used where the CPU has the instructions, unless
SPQT_NATIVE=0; elsewhere (arm64, older x86) kernels take their plain path. SPQT_NATIVE=fma leaves out VNNI alone.
"""

import functools
import os
import platform
import sys
from pathlib import Path

from spqt_ti.backend import ti

_FOLDER = Path(__file__).parent
_NEEDS = {"x86_64": {"fma", "f16c"}, "x86_64_vnni": {"fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"}}
_NEEDS["x86_64_vnni_chunks"] = _NEEDS["x86_64_vnni"]
_WANTED = {"0": (), "fma": ("x86_64",), "1": tuple(_NEEDS)}


@functools.cache
def _cpu_flags() -> frozenset[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def available(name: str) -> bool:
    """True where the functions of `name`.bc run: Linux on an x86-64 CPU with the instructions."""
    wanted = _WANTED.get(os.environ.get("SPQT_NATIVE", "1"), _WANTED["1"])
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return name in wanted and here and _NEEDS[name] <= _cpu_flags()


def _load(name: str):
    return _builder(name) if available(name) else None


@functools.cache
def _builder(name: str):
    """The functions of `name`.bc, once per process. A builder's temporary folder is not for bitcode: it goes."""
    builder = ti.lang.source_builder.SourceBuilder.from_file(str(_FOLDER / f"{name}.bc"))
    os.rmdir(builder.td)
    builder.td = None  # nothing to remove on exit
    return builder


def load():
    """`prefetch64`, `prefetch128`, `prefetch_listed128`, `write_run`, `fma8`, `fma16`, `scales_and_minima`, `relax`,
    `read_clock`; None where they are not available.
    """
    return _load("x86_64")


def load_vnni():
    """`dot2` and what prepares its arguments, see x86_64_vnni.ll; None where they are not available."""
    return _load("x86_64_vnni")


def load_vnni_chunks():
    """What prefill's 16-bit products need besides, see x86_64_vnni_chunks.ll; None where they are not available."""
    return _load("x86_64_vnni_chunks")
