"""What `spqt doctor` finds out about this machine: versions, memory, its read bandwidth, whether a kernel is right, and
what would make decoding faster.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from spqt_ti import __version__, ops
from spqt_ti.backend import start
from spqt_ti.backend.devices import cpu_name
from spqt_ti.backend.probe import Finding, probe_all
from spqt_ti.benchmark.bandwidth import read_bandwidth
from spqt_ti.benchmark.provenance import BUSY
from spqt_ti.cache import cache_dir
from spqt_ti.errors import CacheError, SpqtError
from spqt_ti.formats.layout import dequantize_matrix
from spqt_ti.formats.schemes import find
from spqt_ti.kernels.cpu import native
from spqt_ti.memory import available_memory
from spqt_ti.model.tuning import Tuning
from spqt_ti.threads import available_threads

__all__ = ["Checkup", "SelfTest", "check_up", "self_test", "versions"]

_PACKAGES = ("taichi", "numpy", "gguf", "tokenizers", "safetensors", "huggingface-hub")
_HELPERS = {
    "x86_64": "prefetch and fused multiply-add (AVX2, F16C)",
    "x86_64_16_bits": "products in 16 bits (AVX2)",
    "x86_64_vnni": "these products by AVX-512 VNNI",
}
MOST_ERROR = 1e-3  # of a product, relative to the norm of its result
_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}  # what OpenBLAS's SkylakeX needs
_WITHOUT_AVX512 = {"Haswell", "Zen", "Sandybridge", "Nehalem", "Prescott"}


@dataclass(frozen=True)
class SelfTest:
    """A matrix of a scheme multiplied by a kernel: error relative to NumPy's product of the same weights."""

    scheme: str
    layout: str
    error: float

    @property
    def passed(self) -> bool:
        """Whether the error is one of rounding."""
        return self.error < MOST_ERROR


@dataclass(frozen=True)
class Checkup:
    """`bandwidth`: threads -> bytes per second read in order. `advice`: what would be faster."""

    versions: dict[str, str]
    cpu: str
    threads: int
    load: float | None
    memory: int | None
    cache: str
    helpers: dict[str, bool]
    bandwidth: dict[int, float]
    self_tests: list[SelfTest]
    backends: list[Finding]
    advice: list[str] = field(default_factory=list)


def check_up(quick: bool = False) -> Checkup:
    """Look, measure and compute, on the CPU; every backend in a process of its own. `quick`: without other backends."""
    runtime, threads = start("cpu"), available_threads()
    findings = [] if quick else probe_all()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    bandwidth = {count: read_bandwidth(count, rounds=3) for count in sorted({1, threads})}
    helpers = {about: native.available(name) for name, about in _HELPERS.items()}
    tuned = bool(Tuning.load(runtime.name).shapes)
    return Checkup(
        versions(), cpu_name(), threads, load, available_memory(), _cache(), helpers, bandwidth,
        [self_test(scheme, layout) for scheme, layout in (("q4_k", "zigzag"), ("q8_0", "row"))], findings,
        _advice(helpers, tuned, load, threads, findings, blas_misses_avx512()),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of this package, Python, the system and what computes or reads files."""
    found = {"spqt-ti": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def self_test(scheme: str, layout: str) -> SelfTest:
    """A sparse product of 600 outputs and 512 inputs, half of them skipped, on the backend of this process."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((600, 512), np.float32)
    x = rng.standard_normal(512).astype(np.float32)
    packed = ops.pack(w, scheme=scheme, layout=layout)
    threshold = float(np.median(np.abs(x)))
    found = ops.sparse_gemv(packed, x, threshold)
    stored = dequantize_matrix(packed.data, 600, 512, layout, find(scheme)).astype(np.float64)
    expected = stored @ np.where(np.abs(x) > threshold, x, 0).astype(np.float64)
    return SelfTest(scheme, layout, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))


def _cache() -> str:
    try:
        return str(cache_dir())
    except CacheError as error:
        return str(error)


def blas_misses_avx512() -> bool:
    """Whether the CPU has AVX-512 and NumPy's OpenBLAS does without, as where it takes an AMD one for a Haswell."""
    found = {one.get("architecture") for one in threadpool_info() if one.get("internal_api") == "openblas"}
    return native.cpu_flags() >= _AVX512 and bool(found & _WITHOUT_AVX512)


def _advice(
    helpers: dict[str, bool],
    tuned: bool,
    load: float | None,
    threads: int,
    findings: list[Finding],
    slow_blas: bool = False,
) -> list[str]:
    advice: list[str] = []
    if not tuned:
        advice.append("spqt tune measures from which sparsity on skipping pays here; nothing is measured yet")
    if not all(helpers.values()):
        missing = ", ".join(about for about, there in helpers.items() if not there)
        why = "SPQT_NATIVE turns them off" if os.environ.get("SPQT_NATIVE", "1") != "1" else "this machine has none"
        advice.append(f"kernels run without {missing} ({why})")
    if slow_blas:
        advice.append(
            "OPENBLAS_CORETYPE=SkylakeX in the environment lets NumPy use AVX-512: GPTQ in three quarters of the time"
        )
    if load is not None and load > BUSY * threads:
        advice.append(f"other programs compute now (load {load:.1f} on {threads} CPUs); decoding waits for them")
    if threads < (os.cpu_count() or 1):
        advice.append(f"this process may use {threads} of {os.cpu_count()} CPUs")
    for one in findings:
        if one.works and one.capabilities and one.capabilities["groups"] and not _software(one.device):
            advice.append(f"--backend {one.backend} runs on {one.device}")
    return advice


def _software(device: str | None) -> bool:
    return device is None or any(name in device.lower() for name in ("llvmpipe", "lavapipe", "swiftshader"))


def failed(checkup: Checkup) -> list[str]:
    """What is wrong, in words; nothing where all is well."""
    wrong = [test for test in checkup.self_tests if not test.passed]
    return [f"{test.scheme} in {test.layout} layout is off by {test.error:.1e}" for test in wrong]


def require_right(checkup: Checkup) -> None:
    """SpqtError where a kernel computes wrong results."""
    problems = failed(checkup)
    if problems:
        raise SpqtError(f"kernels compute wrong results: {'; '.join(problems)}. Try SPQT_NATIVE=0, and report it")


def as_report(checkup: Checkup) -> dict[str, Any]:
    """Ready for JSON."""
    return {**asdict(checkup), "wrong": failed(checkup)}
