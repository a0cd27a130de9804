"""Between host and device: arrays up, and pieces of f32 arrays from one to another."""

import numpy as np

from spqt_ti.backend import ndarray, ti
from spqt_ti.kernels.simt.groups import array_of

_TYPES = {np.dtype(np.float32): ti.f32, np.dtype(np.uint32): ti.u32, np.dtype(np.int32): ti.i32}
_THREADS = 128
_GRID = 64 * _THREADS
_LARGE_GRID = 8192 * _THREADS  # any device's: Vulkan promises 65535 groups
floats4 = ti.types.vector(4, ti.f32)


def upload(values: np.ndarray) -> ti.Ndarray:
    """A device array of `values` (f32, u32 or i32; [n], or [n, lanes] for an array of vectors)."""
    dtype = _TYPES[values.dtype]
    element = dtype if values.ndim == 1 else ti.types.vector(values.shape[1], dtype)
    array = ndarray(element, (max(1, len(values)),))
    if values.size:
        array.from_numpy(np.ascontiguousarray(values))
    return array


def zeros(dtype, size: int) -> ti.Ndarray:
    """A device array of zeros."""
    array = ndarray(dtype, (max(1, size),))
    array.fill(0)
    return array


def make_copy():
    """Build the kernel (source, first, target, at, count): target[at : at + count] = source[first : first + count]."""

    @ti.kernel
    def copy(source: array_of(ti.f32), first: ti.i32, target: array_of(ti.f32), at: ti.i32, count: ti.i32):
        ti.loop_config(block_dim=_THREADS)
        for t in range(_GRID):
            i = t
            while i < count:
                target[at + i] = source[first + i]
                i += _GRID

    return copy


def make_copy_all(size: int):
    """Build the kernel (source, target) that copies f32 [size, 4], as fast as the device can."""

    @ti.kernel
    def copy_all(source: array_of(floats4), target: array_of(floats4)):
        ti.loop_config(block_dim=_THREADS)
        for t in range(_LARGE_GRID):
            i = t
            while i < size:
                target[i] = source[i]
                i += _LARGE_GRID

    return copy_all
