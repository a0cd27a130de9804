"""The KV cache of the GPUs' engine, looked at from the host."""

from __future__ import annotations

import numpy as np

from spqt_ti.backend import ti
from spqt_ti.kernels.simt.attention import CacheLayout
from spqt_ti.model.faults import CacheFault, first_fault


class SimtCache:
    """Keys and values of every position in the device's memory; the interface is `model.engine.Cache`."""

    half = False

    def __init__(self, layout: CacheLayout, array: ti.Ndarray) -> None:
        self._layout, self._array = layout, array

    def clear(self) -> None:
        """Zeros everywhere."""
        self._array.fill(0)

    def fault(self, first: int, last: int) -> CacheFault | None:
        """The first layer whose keys or values of positions first..last-1 are not all finite, None if there is none."""
        layout = self._layout
        heads = self._array.to_numpy().reshape(layout.layers, layout.kv_heads, 2, -1)
        shape = (layout.layers, layout.kv_heads)
        keys = heads[:, :, 0].reshape(*shape, layout.head_dim, layout.context)[..., first:last]
        values = heads[:, :, 1].reshape(*shape, layout.context, layout.head_dim)[:, :, first:last]
        flat = [part.reshape(layout.layers, -1) for part in (keys, values)]
        return first_fault(np.concatenate(flat, axis=1))
