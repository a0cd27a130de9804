"""The only package that imports Taichi and calls `ti.init`.

Everything else writes `from spqt_ti.backend import ti`. Taichi has one runtime per process; `start` brings it up
once, and later calls return the same one. SPQT_TAICHI=quadrants takes the `quadrants` package for Taichi.
"""

import contextlib
import ctypes
import io
import logging
import os
import weakref
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.backend import devices, guard, kernel_cache, source_positions
from spqt_ti.backend.capabilities import WORKERS, Capabilities, of_device
from spqt_ti.backend.guard import check_process
from spqt_ti.backend.taichi_import import PACKAGE, ti
from spqt_ti.cache import private_folder
from spqt_ti.errors import BackendError
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.threads import available_threads

__all__ = [
    "BACKENDS", "GRAPHS", "Capabilities", "Runtime", "address", "available_threads", "check_memory",
    "check_process", "host_view", "kernel_seconds", "look_up", "ndarray", "requested", "require", "runtime", "start",
    "ti",
]  # fmt: skip

BACKENDS = ("cpu", "vulkan", "cuda", "metal")
# Several launches can be submitted as one. The `graph` of quadrants is another thing: control flow inside kernels.
GRAPHS = hasattr(getattr(ti, "graph", None), "GraphBuilder")


@dataclass(frozen=True)
class Runtime:
    """A Taichi runtime: the backend's name, the CPU threads in its pool, the device and what it can do."""

    backend: str
    threads: int
    device: str = "this machine's CPU"
    capabilities: Capabilities = WORKERS

    @property
    def name(self) -> str:
        """The device's, with that of the backend where one device may be several backends'."""
        return f"{self.backend} {self.device}" if self.capabilities.groups else self.device

    def workers(self, threads: int | None = None) -> int | None:
        """Threads that share a CPU's work, `threads` of them or all; None where groups of threads do."""
        return None if self.capabilities.groups else threads or self.threads


_runtime: Runtime | None = None
_log = logging.getLogger(__name__)


def requested(backend: str | None = None) -> str:
    """The backend that a call means: its argument, else SPQT_BACKEND, else "cpu"; "auto" becomes what is there.

    Auto takes Metal, then CUDA, then Vulkan on real hardware, then the CPU. Raises BackendError for an unknown name.
    """
    name = _named(backend)
    if name != "auto":
        return name
    for candidate in ("metal", "cuda", "vulkan"):
        with contextlib.suppress(BackendError):
            if devices.find(candidate).hardware:
                return candidate
    return "cpu"


def _named(backend: str | None) -> str:
    name = backend if backend is not None else os.environ.get("SPQT_BACKEND", "cpu")
    if name != "auto" and name not in BACKENDS:
        raise BackendError(f"backend {name!r} is not available; there are: auto, {', '.join(BACKENDS)}")
    return name


def look_up(backend: str | None = None) -> Runtime:
    """The runtime that `start` would return, without starting it. Raises BackendError where there is none."""
    name = requested(backend)
    if name == "cpu":
        return Runtime(name, available_threads(), devices.cpu_name())
    device = devices.find(name)
    return Runtime(name, available_threads(), device.name, of_device(name, device))


def start(backend: str | None = None, threads: int | None = None, profiler: bool = False) -> Runtime:
    """Start Taichi on a backend (see `requested`), or return the runtime that is already up.

    What "auto" took is logged (INFO), and the command line prints it. `profiler`: keep the times of kernels by the
    device's own clock, where Taichi can (see `kernel_seconds`); launches cost more then.

    `threads` sizes the CPU's worker pool (default: every CPU of the process) and must cover what later calls ask for.

    Raises BackendError for an unknown backend, for one that this machine does not have (with what to install), for a
    thread count that it does not have, and when the process already runs another backend.
    """
    global _runtime
    name = requested(backend)
    limit = available_threads()
    if threads is not None and not 1 <= threads <= limit:
        raise BackendError(f"threads must be between 1 and {limit} (the CPUs of this process), not {threads}")
    check_process()
    with guard.LOCK:
        if _runtime is not None:
            if _runtime.backend != name:
                raise BackendError(
                    f"this process already runs the {_runtime.backend} backend; use another process for {name}"
                )
            return _runtime
        found = look_up(name)
        guard.install()
        source_positions.install()
        _runtime = _start_cpu(found) if name == "cpu" else _start_gpu(found, profiler)
        if _named(backend) == "auto":
            _log.info("backend auto: %s (%s)", name, _runtime.device)
        return _runtime


def runtime() -> Runtime:
    """The runtime that is up. Raises BackendError where none is."""
    if _runtime is None:
        raise BackendError("no backend is started yet")
    return _runtime


def processors() -> int | None:
    """That the device's groups of threads run on side by side; None where no runtime is up, or its driver does not
    tell.
    """
    return _runtime.capabilities.processors if _runtime is not None else None


def check_memory(what: str, sizes: dict[str, int]) -> None:
    """Raise BackendError unless arrays of these sizes (name -> bytes) fit the device, one by one and together."""
    limits = runtime().capabilities
    for name, size in sizes.items():
        if limits.max_array_bytes is not None and size > limits.max_array_bytes:
            raise BackendError(
                f"{what}: {name} take {size / 1e9:.2f} GB, more than one array can have on {runtime().device} "
                f"({limits.max_array_bytes / 1e9:.2f} GB); take a smaller model or another backend"
            )
    total = sum(sizes.values())
    if limits.memory is not None and total > limits.memory:
        raise BackendError(
            f"{what}: {total / 1e9:.2f} GB do not fit the {limits.memory / 1e9:.2f} GB of {runtime().device}; "
            "take a smaller model, a shorter context or another backend"
        )


def require(group: int, shared_memory: int, arrays: int) -> None:
    """Raise BackendError unless the device runs kernels with groups of so many threads that share so many bytes, and
    so many arrays.
    """
    limits = runtime().capabilities
    for what, needed, there in (
        ("threads in a group", group, limits.max_group),
        ("bytes of shared memory", shared_memory, limits.shared_memory),
        ("arrays", arrays, limits.max_arrays_per_task),
    ):
        if needed > there:
            raise BackendError(f"{runtime().device}: kernels need {needed} {what}, and it has {there}; use the cpu")


def _start_cpu(found: Runtime) -> Runtime:
    before, threads = _thread_ids(), found.threads
    arch = _init(
        ti.cpu,
        cpu_max_num_threads=threads,
        # A worker per iteration: by default a thread takes at least 512 iterations of a parallel loop.
        make_cpu_multithreading_loop=False,
        # Keep 16-lane vectors as LLVM vectors instead of 16 scalars.
        real_matrix_scalarize=False,
        force_scalarize_matrix=False,
    )
    if arch not in (ti.x64, ti.arm64):
        raise BackendError("Taichi did not start its CPU backend; is this an x86-64 or arm64 machine?")
    _pin_workers(before, threads)
    return found


def _start_gpu(found: Runtime, profiler: bool) -> Runtime:
    name = found.backend
    # Vectors stay vectors where LLVM compiles them, so that four words are one load; SPIR-V only knows scalars.
    options = {"real_matrix_scalarize": False} if name == "cuda" else {}
    if profiler and name == "cuda":  # on Vulkan it corrupts memory, for Metal there is none
        options["kernel_profiler"] = True
    if _init(getattr(ti, name), **options) != getattr(ti, name):
        ti.reset()
        raise BackendError(f"{name}: {found.device} is there, but Taichi does not start on it; is its driver too old?")
    return found


def _init(arch: Any, **options: Any) -> Any:
    """ti.init with what all backends share; returns the arch that came up."""
    compiled = _compiled_kernels()
    kernel_cache.claim(compiled)
    # ti.init prints a banner that has no switch, and leaves this thread flushing denormals to zero.
    with contextlib.redirect_stdout(io.StringIO()), gradual_underflow():
        ti.init(
            arch=arch,
            # Q4_K is byte-exact only without it, and explicit vectors gain nothing from it.
            fast_math=False,
            offline_cache=True,
            offline_cache_file_path=str(compiled),
            log_level=ti.ERROR,
            **options,
        )
    return ti.lang.impl.current_cfg().arch


def kernel_seconds() -> float | None:
    """Time that kernels have run since the last call, by the device's own clock, without the gaps between them; None
    where there is no such clock, or it was not asked for (see `start`). Waits for the device.
    """
    if not ti.lang.impl.current_cfg().kernel_profiler:
        return None
    seconds = ti.profiler.get_kernel_profiler_total_time()
    ti.profiler.clear_kernel_profiler_info()
    return seconds


def ndarray(dtype: Any, shape: tuple[int, ...]) -> ti.Ndarray:
    """A Taichi ndarray whose memory goes when it goes: Taichi 1.7.4 sees to that for arrays of scalars only."""
    check_process()
    with guard.LOCK:
        array = ti.ndarray(dtype, shape)
    if not hasattr(type(array), "__del__"):
        weakref.finalize(array, _delete, array.arr).atexit = False
    return array


def _delete(memory: Any) -> None:
    if guard.forked():  # the lock may be held by a thread that this process does not have
        return
    with guard.LOCK:
        program = ti.lang.impl.get_runtime().prog
        if program is not None:
            program.delete_ndarray(memory)


def address(array: ti.Ndarray) -> int:
    """Address of the first byte of a Taichi ndarray in CPU memory."""
    return ti.lang.impl.get_runtime().prog.get_ndarray_data_ptr_as_int(array.arr)


def host_view(array: ti.Ndarray) -> np.ndarray:
    """The memory of a CPU ndarray as a NumPy array, without a copy; shape is the ndarray's, then the vector's lanes.

    The view keeps the memory alive. Call `ti.sync()` before reading what a kernel wrote.

    Raises BackendError where device memory is not host memory.
    """
    if _runtime is None or not _runtime.capabilities.host_memory:
        raise BackendError("host_view needs the cpu backend: other backends keep arrays in device memory")
    dtype = np.dtype(ti.lang.util.to_numpy_type(array.dtype))
    shape = tuple(array.shape) + tuple(array.element_shape)
    nbytes = int(np.prod(shape)) * dtype.itemsize
    buffer = (ctypes.c_byte * nbytes).from_address(address(array))
    buffer.array = array  # the base of all views
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


def _compiled_kernels() -> Path:
    """Folder for compiled kernels: the user's, or one that goes with the process where that cannot be written. Without
    any, Taichi 1.7.4 ends with a segmentation fault.

    Taichi's cache does not see what is inside the native bitcode, so each version of that has a folder of its own.
    """
    files = sorted((Path(__file__).parent.parent / "kernels" / "cpu" / "native").glob("*.bc"))
    bitcode = b"".join(file.read_bytes() for file in files)
    version = ".".join(map(str, ti.__version__))
    try:
        folder = private_folder("kernels") / f"{PACKAGE}-{version}-{sha256(bitcode).hexdigest()[:12]}"
        folder.mkdir(exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
        return folder
    except OSError as error:
        _log.warning("kernels are compiled anew at each start: %s", error)
    try:
        return kernel_cache.temporary_folder()
    except OSError as error:
        raise BackendError(f"there is no folder for compiled kernels: {error}; set SPQT_CACHE_DIR or TMPDIR") from error


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
