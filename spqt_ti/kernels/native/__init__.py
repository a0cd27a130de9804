"""LLVM functions for what Taichi cannot express on x86-64: prefetch, fused multiply-add, giving way while waiting.

`x86_64.bc` is assembled from `x86_64.ll` beside it. They are used where the CPU has FMA, unless SPQT_NATIVE=0;
elsewhere (arm64, older x86) kernels take their plain path, which computes the same sums with separate rounding of
each product.
"""

import os
import platform
import sys
from pathlib import Path

from spqt_ti.backend import ti

BITCODE = Path(__file__).with_name("x86_64.bc")


def _cpu_has_fma() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " fma " in cpuinfo.read_text()


def available() -> bool:
    """True where the bitcode runs well: Linux on x86-64 with FMA (without it llvm.fma is a library call)."""
    wanted = os.environ.get("SPQT_NATIVE", "1") != "0"
    return wanted and sys.platform == "linux" and platform.machine() == "x86_64" and _cpu_has_fma()


def load():
    """The bitcode: `prefetch64`, `prefetch128`, `fma8`, `fma16`, `relax`; None where it is not available."""
    return ti.lang.source_builder.SourceBuilder.from_file(str(BITCODE)) if available() else None
