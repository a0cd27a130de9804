"""What drivers say about their devices, and what is said where there is no driver."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
import sys

import pytest

from spqt_ti.backend import devices
from spqt_ti.errors import BackendError


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "install NVIDIA's driver"),
        ("vulkan", "install libvulkan1 and the GPU's driver, or mesa-vulkan-drivers"),
    ],
)
def test_without_a_driver(monkeypatch, name, message):
    def missing(library: str) -> None:
        raise OSError(f"{library}: no such file")

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match=f"{name}: .*{message}"):
        devices.find(name)


@pytest.mark.skipif(sys.platform == "darwin" and platform.machine() == "arm64", reason="has Metal")
def test_metal_elsewhere():
    with pytest.raises(BackendError, match="metal: needs macOS on Apple silicon"):
        devices.find("metal")


@pytest.mark.parametrize(("answer", "name"), [("Apple M2 Pro\n", "Apple M2 Pro"), (None, "Apple GPU")])
def test_metal(monkeypatch, answer, name):
    """Three quarters of the memory, which the GPU shares, are for the GPU."""

    def run(command, **_):
        if answer is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, answer)

    monkeypatch.setattr(devices.subprocess, "run", run)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(devices.os, "sysconf", {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 16384}.__getitem__)
    found = devices.find("metal")
    assert found.name == name
    assert (found.memory, found.shared_memory, found.max_group) == (12 << 30, 32768, 1024)
    assert found.max_array_bytes < 1 << 32


def test_vulkan_memory_is_the_largest_local_heap():
    heaps = [(100, 0), (30, 1), (40, 1), (90, 2)]
    raw = struct.pack("=I", 0).ljust(260, b"\0") + struct.pack("=I", len(heaps))
    raw += b"".join(struct.pack("=QII", size, flags, 0) for size, flags in heaps)
    assert devices._vulkan_memory(raw) == 40


def test_vulkan():
    """Within what every Vulkan device has; where vulkaninfo is installed, what it says."""
    try:
        found = devices.find("vulkan")
    except BackendError as error:
        pytest.skip(str(error))
    assert found.shared_memory >= 16384
    assert found.max_group >= 128
    assert found.max_array_bytes >= 1 << 27
    assert found.memory > 0
    if shutil.which("vulkaninfo"):
        text = subprocess.run(["vulkaninfo"], capture_output=True, text=True, check=False).stdout
        assert found.name in text
        assert f"maxComputeSharedMemorySize                      = {found.shared_memory}" in text
