"""One Taichi runtime per process: what is refused, what it leaves alone, and where compiled kernels lie."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from spqt_ti import backend
from spqt_ti.backend import Runtime, devices, host_view, ti
from spqt_ti.backend.capabilities import of_device
from spqt_ti.backend.devices import Device
from spqt_ti.errors import BackendError

A_GPU = Device("a GPU", True, 8 << 30, 32 << 10, 1024, 1 << 30)


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Runtime:
    """Up before a test moves the cache folder."""
    return backend.start()


FRESH = """\
import os
import numpy as np
from spqt_ti import backend
from spqt_ti.backend import ti

before = backend._thread_ids()
runtime = backend.start()
if hasattr(os, "sched_setaffinity"):
    places = [os.sched_getaffinity(thread) for thread in backend._thread_ids() - before]
    alone = [place for place in places if len(place) == 1]
    assert len(set.union(*alone)) == runtime.threads or runtime.threads == 1, places
    assert len(os.sched_getaffinity(0)) == runtime.threads  # this thread goes where it likes


@ti.kernel
def double(x: ti.types.ndarray()):
    for i in x:
        x[i] *= 2


x = np.ones(4, np.float32)
double(x)
assert x.tolist() == [2, 2, 2, 2]
assert (np.full(8, 1e-40, np.float32) * np.float32(1) > 0).all()
"""


# Starting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["opengl", "CPU", ""])
def test_unknown_backends_are_named_with_the_known(name):
    with pytest.raises(BackendError, match=f"'{name}' is not available; there are: auto, cpu, vulkan, cuda, metal"):
        backend.start(name)


def test_the_environment_names_the_backend(monkeypatch):
    monkeypatch.setenv("SPQT_BACKEND", "vulkan")
    assert backend.requested() == "vulkan"
    assert backend.requested("cpu") == "cpu"  # an argument comes first
    monkeypatch.setenv("SPQT_BACKEND", "opengl")
    with pytest.raises(BackendError, match="'opengl' is not available"):
        backend.start()


def offers(*present: str):
    """A stand-in for `devices.find` on a machine with these GPUs; "vulkan on cpu" is Vulkan without one."""

    def find(name: str) -> Device:
        if name in present or f"{name} on cpu" in present:
            return Device(name, name in present, 8 << 30, 32 << 10, 1024, 1 << 30)
        raise BackendError(f"{name}: not here")

    return find


@pytest.mark.parametrize(
    ("present", "taken"),
    [
        ((), "cpu"),
        (("vulkan on cpu",), "cpu"),
        (("vulkan",), "vulkan"),
        (("cuda", "vulkan"), "cuda"),
        (("metal", "vulkan"), "metal"),
    ],
)
def test_auto_prefers_hardware(monkeypatch, present, taken):
    monkeypatch.setattr(devices, "find", offers(*present))
    assert backend.requested("auto") == taken


@pytest.mark.parametrize(("argument", "variable", "said"), [("auto", "cuda", 1), (None, "auto", 1), ("cpu", "auto", 0)])
def test_auto_says_what_it_took(monkeypatch, caplog, argument, variable, said):
    """Also where the environment says auto; and nothing where a backend was named."""
    monkeypatch.setattr(backend, "_runtime", None)
    monkeypatch.setattr(backend, "_start_cpu", lambda found: Runtime("cpu", found.threads))
    monkeypatch.setattr(devices, "find", offers())
    monkeypatch.setenv("SPQT_BACKEND", variable)
    caplog.set_level("INFO")
    backend.start(argument)
    backend.start(argument)
    assert [record.getMessage() for record in caplog.records] == ["backend auto: cpu (this machine's CPU)"] * said


def test_a_backend_that_is_absent_is_an_error(monkeypatch):
    """Not the CPU instead, which is what Taichi would give."""
    monkeypatch.setattr(backend, "_runtime", None)
    monkeypatch.setattr(devices, "find", offers())
    with pytest.raises(BackendError, match="cuda: not here"):
        backend.start("cuda")


def test_a_backend_that_taichi_does_not_start(monkeypatch):
    reset = []
    monkeypatch.setattr(backend, "_runtime", None)
    monkeypatch.setattr(devices, "find", offers("cuda"))
    monkeypatch.setattr(backend, "_init", lambda arch, **options: ti.x64)
    monkeypatch.setattr(ti, "reset", lambda: reset.append(True))
    with pytest.raises(BackendError, match="cuda is there, but Taichi does not start on it"):
        backend.start("cuda")
    assert reset == [True]


def test_models_that_do_not_fit(monkeypatch):
    limits = of_device("vulkan", Device("a GPU", True, 3000, 32 << 10, 1024, 2000))
    monkeypatch.setattr(backend, "_runtime", Runtime("vulkan", 1, "a GPU", limits))
    backend.check_memory("m", {"quants": 2000, "headers": 1000})
    with pytest.raises(BackendError, match=r"m: quants take .* GB, more than one array can have on a GPU"):
        backend.check_memory("m", {"quants": 2001})
    with pytest.raises(BackendError, match="GB do not fit the"):
        backend.check_memory("m", {"quants": 2000, "headers": 1001})


@pytest.mark.parametrize("threads", [0, -1, backend.available_threads() + 1])
def test_thread_counts_that_the_machine_does_not_have(threads):
    with pytest.raises(BackendError, match=f"between 1 and {backend.available_threads()} .* not {threads}"):
        backend.start("cpu", threads)


@pytest.mark.parametrize("threads", [None, 1, backend.available_threads()])
def test_a_second_start_returns_the_same_runtime(runtime, threads):
    assert backend.start("cpu", threads) is runtime
    assert (runtime.backend, runtime.threads) == ("cpu", backend.available_threads())


def test_another_backend_in_the_same_process(monkeypatch):
    monkeypatch.setattr(backend, "_runtime", Runtime("cuda", 1))
    with pytest.raises(BackendError, match="already runs the cuda backend; use another process for cpu"):
        backend.start("cpu")


def test_available_threads_are_those_of_the_process(monkeypatch):
    """Not of the machine: containers and taskset give fewer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert backend.available_threads() == 3


def test_available_threads_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert backend.available_threads() == 1


# What starting leaves alone -------------------------------------------------------------------------------------------


def test_denormals_survive(runtime):
    """ti.init leaves the calling thread flushing them to zero, which would change NumPy's results."""
    small = np.full(8, 1e-40, np.float32)
    assert (small * np.float32(1) == small).all()
    assert (np.full(8, 1e-30, np.float32) * np.float32(1e-10) > 0).all()


def test_a_fresh_start(tmp_path):
    """Silent, each worker on a CPU of its own, denormals kept, the compiled kernel in the cache folder."""
    script = tmp_path / "fresh.py"  # a file, because Taichi reads the source of a kernel
    script.write_text(FRESH)
    environment = os.environ | {"SPQT_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert [file for file in (tmp_path / "cache" / "kernels").rglob("*") if file.is_file()]


# Compiled kernels -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_folder_of_compiled_kernels(cache):
    folder = backend._compiled_kernels()
    assert folder.is_dir()
    assert folder.parent == cache / "kernels"
    assert folder.name.startswith(f"taichi-{'.'.join(map(str, ti.__version__))}-")
    assert backend._compiled_kernels() == folder


def test_other_bitcode_has_another_folder(cache, monkeypatch):
    """Taichi would run kernels compiled with the old one."""
    ours = backend._compiled_kernels()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self) + b" " * (self.suffix == ".bc"))
    assert backend._compiled_kernels() not in (ours, None)


def test_without_a_folder_that_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPQT_CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert backend._compiled_kernels().parent == tmp_path
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(BackendError, match=r"no folder for compiled kernels.*TMPDIR"):
        backend._compiled_kernels()


def test_a_folder_that_cannot_be_written(cache, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert cache not in backend._compiled_kernels().parents


# Memory ---------------------------------------------------------------------------------------------------------------

TYPES = [(ti.f32, np.float32), (ti.f16, np.float16), (ti.i32, np.int32), (ti.u8, np.uint8), (ti.i64, np.int64)]


@pytest.mark.parametrize("lanes", [0, 4, 16])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5)])
@pytest.mark.parametrize(("kind", "dtype"), TYPES, ids=[dtype.__name__ for _, dtype in TYPES])
def test_host_view_is_the_memory_itself(kind, dtype, shape, lanes):
    array = ti.ndarray(ti.types.vector(lanes, kind) if lanes else kind, shape)
    view = host_view(array)
    values = np.arange(view.size).reshape(shape + (lanes,) * bool(lanes)).astype(dtype)
    assert (view.shape, view.dtype) == (values.shape, values.dtype)
    view[:] = values
    np.testing.assert_array_equal(array.to_numpy(), values)
    array.from_numpy(values[::-1].copy())
    ti.sync()
    np.testing.assert_array_equal(view, values[::-1])


@pytest.mark.parametrize("lanes", [0, 4])
def test_memory_goes_with_the_array(monkeypatch, lanes):
    """Once: Taichi deletes arrays of scalars itself, and keeps those of vectors until the process ends."""
    deleted = []
    monkeypatch.setattr(backend, "_delete", deleted.append)
    array = backend.ndarray(ti.types.vector(lanes, ti.f32) if lanes else ti.f32, (8,))
    memory = array.arr
    assert deleted == []
    del array
    gc.collect()
    assert deleted == [memory] * bool(lanes)


def test_a_view_keeps_the_memory(monkeypatch):
    deleted = []
    monkeypatch.setattr(backend, "_delete", deleted.append)
    row = host_view(backend.ndarray(ti.types.vector(4, ti.f32), (8,))).reshape(-1)[4:8]
    gc.collect()
    assert deleted == []
    del row
    gc.collect()
    assert len(deleted) == 1


@pytest.mark.parametrize("size", [1, 3, 100, 100_003])
def test_arrays_begin_on_a_cache_line(size):
    """Kernels load and store 64 bytes at a time."""
    kinds = [ti.u8, ti.types.vector(4, ti.u32)] * 4
    arrays = [backend.ndarray(kind, (size,)) for kind in kinds]
    del arrays[1:3]  # whose memory others may get
    arrays += [backend.ndarray(kind, (size,)) for kind in kinds[:3]]
    assert [backend.address(array) % 64 for array in arrays] == [0] * 9
    assert [host_view(array).ctypes.data for array in arrays] == [backend.address(array) for array in arrays]


@pytest.mark.parametrize("other", [None, Runtime("cuda", 1, "a GPU", of_device("cuda", A_GPU))])
def test_host_view_needs_host_memory(monkeypatch, other):
    array = ti.ndarray(ti.f32, (4,))
    monkeypatch.setattr(backend, "_runtime", other)
    with pytest.raises(BackendError, match="host_view needs the cpu backend"):
        host_view(array)
