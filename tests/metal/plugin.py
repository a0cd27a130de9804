"""pytest -p metal.plugin --backend vulkan: every kernel that a test launches runs as Metal would run it.

Taichi compiles it for Metal's capabilities, and the translated MSL runs on the CPU (emulator.py) with the values of the
arrays that the launch was given; nothing of it runs on Vulkan, where only the arrays live. The session fails when no
kernel was launched at all. Needs tests/ on PYTHONPATH.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from metal import limits
from metal.emulator import Emulator, build
from metal.tasks import Kernel
from metal.translation import missing_tools, translate

from spqt_ti import backend
from spqt_ti.backend import ti


class Launcher:
    """Takes the place of Taichi's launch of compiled kernels."""

    def __init__(self, folder: Path) -> None:
        self.launches = 0
        self._folder = folder
        self._emulators: dict[int, tuple[Any, Emulator]] = {}  # by id of the compiled kernel, which is kept alive

    @property
    def kernels(self) -> list[Kernel]:
        """Those that were launched."""
        return [emulator.kernel for _, emulator in self._emulators.values()]

    def launch(self, name: str, compiled: Any, values: tuple[Any, ...]) -> None:
        """Run a kernel on Taichi's arrays and Python's numbers, in another order of threads each time."""
        if id(compiled) not in self._emulators:
            self._emulators[id(compiled)] = compiled, self._translate(name, compiled)
        emulator = self._emulators[id(compiled)][1]
        # By identity, because an array may be given twice.
        host = {id(value): value.to_numpy() for value in values if isinstance(value, ti.Ndarray)}
        self.launches += 1
        flat = {key: array.reshape(-1) for key, array in host.items()}
        emulator.launch(*(flat.get(id(value), value) for value in values), seed=self.launches)
        for place in emulator.kernel.written:
            values[place].from_numpy(host[id(values[place])])

    def _translate(self, name: str, compiled: Any) -> Emulator:
        folder = self._folder / f"{len(self._emulators)}_{name}"
        folder.mkdir()
        return build([translate(name, compiled, folder)], folder)[name]

    def summary(self) -> str:
        """What ran, and how far it is from Metal's limits."""
        tasks = [task for kernel in self.kernels for task in kernel.tasks]
        if not tasks:
            return "metal: nothing was launched"
        return (
            f"metal: {self.launches} launches of {len(self.kernels)} kernels ({len(tasks)} tasks). A task has at most "
            f"{max(map(limits.threadgroup_bytes, tasks))} of {limits.THREADGROUP_BYTES} bytes of threadgroup memory, "
            f"{max(task.threads for task in tasks)} of {limits.THREADS} threads, "
            f"{max(len(limits.buffer_indices(task)) for task in tasks)} of {limits.BUFFERS} buffers"
        )


_LAUNCHER = pytest.StashKey[Launcher]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep-msl", type=Path, metavar="FOLDER", help="put all SPIR-V and MSL into a new folder")


def pytest_configure(config: pytest.Config) -> None:
    """Put a launcher in Taichi's place; Taichi's own kernels (fill, copies) stay what they are."""
    if reason := missing_tools():
        raise pytest.UsageError(f"metal.plugin {reason}")
    if config.getoption("--backend") != "vulkan":
        raise pytest.UsageError("metal.plugin needs --backend vulkan, where the arrays live")
    folder: Path | None = config.getoption("--keep-msl")
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="metal-")
        config.add_cleanup(temporary.cleanup)
        folder = Path(temporary.name)
    elif folder.exists():
        raise pytest.UsageError(f"--keep-msl: {folder} is there already")
    folder.mkdir(parents=True, exist_ok=True)
    launcher = config.stash[_LAUNCHER] = Launcher(folder)
    kernel, patch = ti.lang.kernel_impl.Kernel, pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    original = kernel.launch_kernel

    def launch_kernel(self: Any, compiled: Any, *values: Any) -> Any:
        if self.func.__module__.startswith("taichi."):
            return original(self, compiled, *values)
        return launcher.launch(self.func.__name__, compiled, values)

    patch.setattr(kernel, "launch_kernel", launch_kernel)
    patch.setattr(backend, "GRAPHS", False)  # which would launch past this


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session that ran nothing as Metal has shown nothing."""
    if session.exitstatus == pytest.ExitCode.OK and not session.config.stash[_LAUNCHER].launches:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(config.stash[_LAUNCHER].summary())
