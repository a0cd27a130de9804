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
        keys, values = self._views(self._array.to_numpy())
        layers = self._cache_shape.layers
        flat = [part.reshape(layers, -1) for part in (keys[..., first:last], values[:, :, first:last])]
        return first_fault(np.concatenate(flat, axis=1))

    def read_prefix(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the first positions, f32 [layers, kv_heads, count, head_dim] each."""
        keys, values = self._views(self._array.to_numpy())
        return np.ascontiguousarray(keys[..., :count].swapaxes(2, 3)), values[:, :, :count].copy()

    def write_prefix(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Put what `read_prefix` gave at the first positions."""
        flat = self._array.to_numpy()
        into_keys, into_values = self._views(flat)
        into_keys[..., : keys.shape[2]] = keys.swapaxes(2, 3)
        into_values[:, :, : values.shape[2]] = values
        self._array.from_numpy(flat)

    def _views(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys [layers, kv_heads, head_dim, context] and values [layers, kv_heads, context, head_dim] of the array."""
        shape = self._cache_shape
        heads = flat.reshape(shape.layers, shape.kv_heads, 2, -1)
        keys = heads[:, :, 0].reshape(*heads.shape[:2], shape.head_dim, shape.context)
        return keys, heads[:, :, 1].reshape(*heads.shape[:2], shape.context, shape.head_dim)
