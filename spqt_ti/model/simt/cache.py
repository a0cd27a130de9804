"""The KV cache of the GPUs' engine, looked at from the host."""

from __future__ import annotations

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.attention import CacheShape
from spqt_ti.kernels.simt.cache_rows import make_rows, row_size
from spqt_ti.kernels.simt.transfer import upload, zeros
from spqt_ti.model.faults import CacheFault, first_fault


class SimtCache:
    """Keys and values of every position in the device's memory; the interface is `model.engine.Cache`."""

    half = False

    def __init__(self, cache_shape: CacheShape, array: ti.Ndarray) -> None:
        self._cache_shape, self._array = cache_shape, array
        self._read, self._write = make_rows(cache_shape)

    def clear(self) -> None:
        """Zeros everywhere."""
        self._array.fill(0)

    def read(self, position: int) -> np.ndarray:
        """Keys and values of one position, f32 [layers * heads * 2 * head_dim]."""
        row = zeros(ti.f32, row_size(self._cache_shape))
        self._read(self._array, position, row)
        return row.to_numpy()

    def write(self, position: int, row: np.ndarray) -> None:
        """Put back what `read` gave."""
        self._write(self._array, position, upload(row))

    def fault(self, first: int, last: int) -> CacheFault | None:
        """The first layer whose keys or values of positions first..last-1 are not all finite, None if there is none."""
        cache_shape = self._cache_shape
        heads = self._array.to_numpy().reshape(cache_shape.layers, cache_shape.kv_heads, 2, -1)
        shape = (cache_shape.layers, cache_shape.kv_heads)
        keys = heads[:, :, 0].reshape(*shape, cache_shape.head_dim, cache_shape.context)[..., first:last]
        values = heads[:, :, 1].reshape(*shape, cache_shape.context, cache_shape.head_dim)[:, :, first:last]
        flat = [part.reshape(cache_shape.layers, -1) for part in (keys, values)]
        return first_fault(np.concatenate(flat, axis=1))
