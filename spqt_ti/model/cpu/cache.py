"""The KV cache of the CPU's engine, in memory that decode and prefill share."""

from __future__ import annotations

from spqt_ti.backend import host_view, ndarray
from spqt_ti.kernels.cpu.attention import CacheShape
from spqt_ti.model.faults import CacheFault, first_fault


class WorkerCache:
    """Keys and values of every position; the interface is `model.engine.Cache`."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape, self.half = shape, shape.half
        self.array = ndarray(shape.dtype, (shape.vectors,))
        self._values = host_view(self.array).reshape(shape.layers, shape.kv_heads, 2, -1)
        self._values[:] = 0

    def clear(self) -> None:
        """Zeros everywhere."""
        self._values[:] = 0

    def fault(self, first: int, last: int) -> CacheFault | None:
        """The first layer whose keys or values of positions first..last-1 are not all finite, None if there is none.

        Whole pages of 16 positions count. Call `ti.sync` before.
        """
        shape, begin, end = self.shape, first >> 4, (last + 15) >> 4
        pages = self._values.reshape(shape.layers, -1, shape.context // 16, 16 * shape.head_dim)
        return first_fault(pages[:, :, begin:end])
