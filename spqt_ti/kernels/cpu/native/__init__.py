"""LLVM functions for what Taichi cannot express on x86-64: prefetch, fused multiply-add, giving way while waiting, and
sums of 16-bit products.

Each `.bc` is assembled from the `.ll` beside it. They are used where the CPU has the instructions, unless
SPQT_NATIVE=0; elsewhere (arm64, older x86) kernels take their plain path. Products of 16 bits are AVX-512 VNNI's, or
AVX2's where there is none. SPQT_NATIVE=avx2 leaves out AVX-512 VNNI, SPQT_NATIVE=fma all of these products.
"""

import functools
import os
import platform
import re
import sys
from pathlib import Path

from spqt_ti.backend import ti

_FOLDER = Path(__file__).parent
_AVX2, _FMA = {"avx2", "fma", "f16c"}, {"fma", "f16c"}
_VNNI = _FMA | {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}
_NEEDS = {
    "x86_64": _FMA, "x86_64_16_bits": _AVX2, "x86_64_chunks": _AVX2, "x86_64_avx2": _AVX2, "x86_64_vnni": _VNNI,
}  # fmt: skip
_WANTED = {"0": (), "fma": ("x86_64",), "avx2": tuple(set(_NEEDS) - {"x86_64_vnni"}), "1": tuple(_NEEDS)}


@functools.cache
def _of_cpu(field: str) -> str:
    """What /proc/cpuinfo says of the first CPU; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")


def cpu_flags() -> frozenset[str]:
    """Of /proc/cpuinfo; none elsewhere."""
    return frozenset(_of_cpu("flags").split())


def prefetches_into() -> str:
    """The cache that weights are fetched into: "l1" on AMD's CPUs, else "l2" (figures: docs/performance.md)."""
    return "l1" if _of_cpu("vendor_id") == "AuthenticAMD" else "l2"


def available(name: str) -> bool:
    """True where the functions of `name`.bc run: Linux on an x86-64 CPU with the instructions."""
    wanted = _WANTED.get(os.environ.get("SPQT_NATIVE", "1"), _WANTED["1"])
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return name in wanted and here and _NEEDS[name] <= cpu_flags()


def products_by() -> str | None:
    """The file whose instructions multiply 16-bit integers here: x86_64_vnni, else x86_64_avx2; None: they do not."""
    return next((name for name in ("x86_64_vnni", "x86_64_avx2") if available(name)), None)


class _Joined:
    """The functions of two files as one: those of the first, and what it has not of the second."""

    def __init__(self, first: str, second: str) -> None:
        self._first, self._second = _builder(first), _builder(second)
        self._names = set(re.findall(r"^define void @(\w+)", (_FOLDER / f"{first}.ll").read_text(), re.MULTILINE))

    def __getattr__(self, name: str):
        return getattr(self._first if name in self._names else self._second, name)


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
    """`prefetch64`, `prefetch128`, `prefetch_listed64`, `prefetch_listed128` into the cache that `prefetches_into`
    says, and `write_run`, `fma8`, `fma16`, `scales_and_minima`, `relax`, `read_clock`; None where they are not
    available.
    """
    return _Joined(f"x86_64_prefetch_{prefetches_into()}", "x86_64") if available("x86_64") else None


def load_vnni():
    """What only CPUs with AVX-512 VNNI have, see x86_64_vnni.ll; None where they are not available."""
    return _load("x86_64_vnni")


def load_16_bits():
    """`dot2`, `dot4`, `times` and `pick` by the instructions that `products_by` says, and what prepares their
    arguments (x86_64_16_bits.ll); None where there are none.
    """
    by = products_by()
    return _Joined(by, "x86_64_16_bits") if by is not None else None


def load_chunks():
    """What prefill's 16-bit products need besides, see x86_64_chunks.ll; None where they are not available."""
    return _load("x86_64_chunks")
