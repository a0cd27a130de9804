"""Which devices this machine offers to each GPU backend, asked of the drivers themselves (ctypes, no Taichi).

Taichi falls back to the CPU where a driver is missing and tells nothing about a device, so both are found out here.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spqt_ti.errors import BackendError


@dataclass(frozen=True)
class Device:
    """A device as its driver describes it. Sizes in bytes; `hardware` is False where a driver computes on the CPU.
    `processors`: that run threadgroups side by side (multiprocessors of CUDA), None where the driver does not tell.
    """

    name: str
    hardware: bool
    memory: int
    shared_memory: int
    max_group: int
    max_array_bytes: int
    processors: int | None = None


def find(backend: str) -> Device:
    """The device that `backend` ("cuda", "metal", "vulkan") would run on.

    Raises BackendError with what is missing and what to install.
    """
    return {"cuda": _cuda, "metal": _metal, "vulkan": _vulkan}[backend]()


def cpu_name() -> str:
    """The CPU's model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _library(names: Sequence[str], problem: str) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError(problem)


# CUDA -----------------------------------------------------------------------------------------------------------------

_CU_SHARED_MEMORY_PER_BLOCK, _CU_THREADS_PER_BLOCK, _CU_PROCESSORS = 8, 1, 16


def _cuda() -> Device:
    # Taichi opens libcuda.so, without the number.
    names = ["nvcuda.dll"] if sys.platform == "win32" else ["libcuda.so"]
    cuda = _library(names, "cuda: libcuda.so is not there; install NVIDIA's driver (and a link without the .1)")
    count, handle = ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value < 1:
        raise BackendError(f"cuda: the driver finds no GPU (status {status}); is one there, and visible here?")
    cuda.cuDeviceGet(ctypes.byref(handle), 0)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGetName(name, 256, handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
        return value.value

    shared, group = attribute(_CU_SHARED_MEMORY_PER_BLOCK), attribute(_CU_THREADS_PER_BLOCK)
    processors = attribute(_CU_PROCESSORS)
    return Device(name.value.decode(), True, memory.value, shared, group, memory.value, processors)


# Metal ----------------------------------------------------------------------------------------------------------------


def _metal() -> Device:
    if sys.platform != "darwin" or platform.machine() != "arm64":
        raise BackendError("metal: needs macOS on Apple silicon")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Apple's tables: 32 KB of threadgroup memory, 1024 threads. Taichi computes byte offsets in 32 bits.
    return Device(_apple_chip(), True, memory * 3 // 4, 32 << 10, 1024, (4 << 30) - 1)


def _apple_chip() -> str:
    """Such as "Apple M2 Pro": one name for CPU and GPU."""
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        name = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        name = ""
    return name or "Apple GPU"


# Vulkan ---------------------------------------------------------------------------------------------------------------

_VK_DEVICE_TYPE_CPU = 4
_VK_TYPES = 5  # other, integrated, discrete, virtual, cpu
_VK_MEMORY_DEVICE_LOCAL = 1
# Byte offsets in VkPhysicalDeviceProperties, whose limits begin at 296 (vulkan_core.h).
_VK_TYPE, _VK_NAME, _VK_STORAGE_RANGE, _VK_SHARED, _VK_GROUP = 16, 20, 296 + 28, 296 + 216, 296 + 232


class _InstanceInfo(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


def _vulkan() -> Device:
    names = ["vulkan-1.dll"] if sys.platform == "win32" else ["libvulkan.so.1", "libvulkan.dylib"]
    advice = "install libvulkan1 and the GPU's driver, or mesa-vulkan-drivers to compute on the CPU"
    vulkan = _library(names, f"vulkan: no Vulkan loader (libvulkan.so.1) here; {advice}")
    instance = ctypes.c_void_p()
    info = _InstanceInfo(type=1)
    status = vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance))
    if status:
        raise BackendError(f"vulkan: the loader finds no driver (status {status}); {advice}")
    try:
        devices = [_vulkan_device(vulkan, handle) for handle in _vulkan_handles(vulkan, instance)]
    finally:
        vulkan.vkDestroyInstance(instance, None)
    if not devices:
        raise BackendError(f"vulkan: the drivers find no device; {advice}")
    return max(devices, key=lambda device: device.hardware)


def _vulkan_handles(vulkan: ctypes.CDLL, instance: ctypes.c_void_p) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint32()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    handles = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), handles)
    return [ctypes.c_void_p(handle) for handle in handles]


def _vulkan_device(vulkan: ctypes.CDLL, handle: ctypes.c_void_p) -> Device:
    properties, memory = ctypes.create_string_buffer(2048), ctypes.create_string_buffer(1024)
    vulkan.vkGetPhysicalDeviceProperties(handle, properties)
    vulkan.vkGetPhysicalDeviceMemoryProperties(handle, memory)

    def u32(at: int) -> int:
        return struct.unpack_from("=I", properties, at)[0]

    name = properties.raw[_VK_NAME : _VK_NAME + 256].split(b"\0")[0].decode(errors="replace")
    hardware = u32(_VK_TYPE) < _VK_TYPES and u32(_VK_TYPE) != _VK_DEVICE_TYPE_CPU
    return Device(name, hardware, _vulkan_memory(memory.raw), u32(_VK_SHARED), u32(_VK_GROUP), u32(_VK_STORAGE_RANGE))


def _vulkan_memory(raw: bytes) -> int:
    """Bytes of the largest device-local heap of a VkPhysicalDeviceMemoryProperties.

    That is a count and 32 types of 8 bytes, then a count and 16 heaps of 16 bytes.
    """
    (heaps,) = struct.unpack_from("=I", raw, 260)
    entries = [struct.unpack_from("=QI", raw, 264 + 16 * i) for i in range(heaps)]
    return max((size for size, flags in entries if flags & _VK_MEMORY_DEVICE_LOCAL), default=0)
