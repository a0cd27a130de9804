"""The only module that imports Taichi and calls `ti.init`.

Everything else writes `from spqt_ti.backend import ti`. Taichi has one runtime per process; `start` brings it up
once, and later calls return the same one.
"""

import contextlib
import ctypes
import io
import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

os.environ.setdefault("ENABLE_TAICHI_HEADER_PRINT", "0")

import taichi as ti

from spqt_ti.cache import cache_dir
from spqt_ti.errors import BackendError
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.threads import available_threads

__all__ = ["BACKENDS", "Runtime", "address", "available_threads", "host_view", "start", "ti"]

BACKENDS = ("cpu",)


@dataclass(frozen=True)
class Runtime:
    """A started Taichi runtime: the backend's name and the number of worker threads in its pool."""

    backend: str
    threads: int


_runtime: Runtime | None = None


def start(backend: str = "cpu", threads: int | None = None) -> Runtime:
    """Start Taichi on `backend`, or return the runtime that is already up.

    `threads` sizes the worker pool (default: every CPU of the process) and must cover what later calls ask for.

    Raises BackendError for an unknown backend, for a thread count that this machine does not have, and when the process
    already runs another backend.
    """
    global _runtime
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r} is not available; this version has: {', '.join(BACKENDS)}")
    limit = available_threads()
    if threads is not None and not 1 <= threads <= limit:
        raise BackendError(f"threads must be between 1 and {limit} (the CPUs of this process), not {threads}")
    if _runtime is not None:
        if _runtime.backend != backend:
            raise BackendError(
                f"this process already runs the {_runtime.backend} backend; use another process for {backend}"
            )
        return _runtime
    before, compiled = _thread_ids(), _compiled_kernels()
    # ti.init prints a banner that has no switch, and leaves this thread flushing denormals to zero.
    with contextlib.redirect_stdout(io.StringIO()), gradual_underflow():
        ti.init(
            arch=ti.cpu,
            cpu_max_num_threads=limit,
            # A worker per iteration: by default a thread takes at least 512 iterations of a parallel loop.
            make_cpu_multithreading_loop=False,
            # Keep 16-lane vectors as LLVM vectors instead of 16 scalars.
            real_matrix_scalarize=False,
            force_scalarize_matrix=False,
            # Q4_K is byte-exact only without it, and explicit vectors gain nothing from it.
            fast_math=False,
            offline_cache=compiled is not None,
            offline_cache_file_path=str(compiled or ""),
            log_level=ti.ERROR,
        )
    if ti.lang.impl.current_cfg().arch not in (ti.x64, ti.arm64):
        raise BackendError("Taichi did not start its CPU backend; is this an x86-64 or arm64 machine?")
    _pin_workers(before, limit)
    _runtime = Runtime(backend, limit)
    return _runtime


def address(array: ti.Ndarray) -> int:
    """Address of the first byte of a Taichi ndarray in CPU memory."""
    return ti.lang.impl.get_runtime().prog.get_ndarray_data_ptr_as_int(array.arr)


def host_view(array: ti.Ndarray) -> np.ndarray:
    """The memory of a CPU ndarray as a NumPy array, without a copy; shape is the ndarray's, then the vector's lanes.

    Keep `array` alive as long as the view, and call `ti.sync()` before reading what a kernel wrote.

    Raises BackendError where device memory is not host memory.
    """
    if _runtime is None or _runtime.backend != "cpu":
        raise BackendError("host_view needs the cpu backend: other backends keep arrays in device memory")
    dtype = np.dtype(ti.lang.util.to_numpy_type(array.dtype))
    shape = tuple(array.shape) + tuple(array.element_shape)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    buffer = (ctypes.c_byte * nbytes).from_address(address(array))
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


def _compiled_kernels() -> Path | None:
    """Folder for compiled kernels, None if it cannot be written.

    Taichi's cache does not see what is inside the native bitcode, so each version of that has a folder of its own.
    """
    files = sorted((Path(__file__).parent / "kernels" / "native").glob("*.bc"))
    bitcode = b"".join(file.read_bytes() for file in files)
    version = ".".join(map(str, ti.__version__))
    folder = cache_dir() / "kernels" / f"taichi-{version}-{sha256(bitcode).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _thread_ids() -> set[int]:
    task = "/proc/self/task"
    return {int(name) for name in os.listdir(task)} if os.path.isdir(task) else set()


def _pin_workers(before: set[int], threads: int) -> None:
    """Give each worker a CPU of its own: two that wake on one core stay there for milliseconds (Linux only)."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cpus = sorted(os.sched_getaffinity(0))
    workers = sorted(_thread_ids() - before)
    if len(workers) < threads:
        return
    for worker, cpu in zip(workers[-threads:], cpus, strict=True):
        os.sched_setaffinity(worker, {cpu})
