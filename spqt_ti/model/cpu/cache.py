"""The KV cache of the CPU's engine, in memory that decode and prefill share."""

from __future__ import annotations

import numpy as np

from spqt_ti.backend import host_view, ndarray, ti
from spqt_ti.kernels.cpu.attention import CacheShape
from spqt_ti.model.faults import CacheFault, first_fault


class WorkerCache:
    """Keys and values of every position; the interface is `model.engine.Cache`."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape, self.half = shape, shape.half
        self.array = ndarray(shape.dtype, (shape.vectors,))
        self._values = host_view(self.array).reshape(shape.layers, shape.kv_heads, 2, -1)
        self._values[:] = 0
        pages = (shape.layers, shape.kv_heads, shape.context // 16, shape.head_dim, 16)
        self._keys = self._values[:, :, 0].reshape(pages)
        self._rows = self._values[:, :, 1].reshape(shape.layers, shape.kv_heads, shape.context, shape.head_dim)

    def clear(self) -> None:
        """Zeros everywhere."""
        self._values[:] = 0

    def read(self, position: int) -> np.ndarray:
        """Keys and values of one position, [2, layers, heads, head_dim] in the cache's own type."""
        ti.sync()
        return np.stack([self._keys[:, :, position >> 4, :, position & 15], self._rows[:, :, position]])

    def write(self, position: int, row: np.ndarray) -> None:
        """Put back what `read` gave."""
        ti.sync()
        self._keys[:, :, position >> 4, :, position & 15], self._rows[:, :, position] = row

    def fault(self, first: int, last: int) -> CacheFault | None:
        """The first layer whose keys or values of positions first..last-1 are not all finite, None if there is none.

        Whole pages of 16 positions count. Call `ti.sync` before.
        """
        shape, begin, end = self.shape, first >> 4, (last + 15) >> 4
        pages = self._values.reshape(shape.layers, -1, shape.context // 16, 16 * shape.head_dim)
        return first_fault(pages[:, :, begin:end])

    def read_prefix(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the first positions, [layers, kv_heads, count, head_dim] each. Call `ti.sync` before."""
        page, lane = np.divmod(np.arange(count), 16)
        keys = self._keys[:, :, page, :, lane].transpose(1, 2, 0, 3)
        return np.ascontiguousarray(keys), self._rows[:, :, :count].copy()

    def write_prefix(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Put what `read_prefix` gave at the first positions."""
        page, lane = np.divmod(np.arange(keys.shape[2]), 16)
        self._keys[:, :, page, :, lane] = keys.transpose(2, 0, 1, 3)
        self._rows[:, :, : values.shape[2]] = values
