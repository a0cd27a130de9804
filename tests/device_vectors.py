"""NumPy values on the device and back, for tests that run a ti.func in a kernel of their own."""

from typing import Any

import numpy as np

from spqt_ti.backend import host_view, ti
from spqt_ti.kernels.cpu.vectors import f32x16


def upload(values: np.ndarray, dtype: Any = f32x16) -> ti.Ndarray:
    """`values`, flat, as a device array of vectors; what the last vector lacks is zero."""
    array = ti.ndarray(dtype, (max(1, -(-values.size // dtype.n)),))
    flat = host_view(array).reshape(-1)
    flat[:] = 0
    flat[: values.size] = values.reshape(-1)
    return array


def download(array: ti.Ndarray) -> np.ndarray:
    """A copy of the array's values, flat, after everything that was launched has run."""
    ti.sync()
    return host_view(array).reshape(-1).copy()
