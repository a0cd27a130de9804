"""A model's arrays on a GPU, and what the host writes to them and reads from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spqt_ti.backend import check_memory, require, ti
from spqt_ti.container import Container
from spqt_ti.kernels.simt.attention import CacheShape
from spqt_ti.kernels.simt.division import Division
from spqt_ti.kernels.simt.groups import SHARED
from spqt_ti.kernels.simt.transfer import make_copy, upload, zeros
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.constants import Constants
from spqt_ti.model.selectors import SelectorMap, Selectors
from spqt_ti.model.simt.maps import FloatMap, IntegerMap
from spqt_ti.model.simt.weights import WeightMap, read_words
from spqt_ti.model.sites import inputs_per_layer

# What the kernels of token_kernels and chunk_kernels take: threads of the largest group, bytes that one shares
# (attention's), arrays of a task.
_MAX_GROUP, _SHARED_MEMORY, _ARRAYS = 512, 20 << 10, 6


def shared_memory(config: ModelConfig) -> int:
    """Bytes that a group shares, at most: attention's, and one more array where heads are normalised."""
    return _SHARED_MEMORY + (4 * SHARED if config.architecture.qk_norm else 0)


class ModelArrays:
    """Weights, KV cache and scratch of a container on the device, for a context of `context` positions.

    `divisions`: see WeightMap.of, whose errors it raises. Raises BackendError, before anything is uploaded, when they
    do not fit the device.
    """

    def __init__(self, container: Container, context: int, divisions: Mapping[str, Division] | None = None) -> None:
        config = self.config = container.config
        require(_MAX_GROUP, shared_memory(config), _ARRAYS)
        self.weight_map = WeightMap.of(config, container.matrices, divisions)
        self.cache_shape = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, context)
        self.constants = Constants.read(container, context)
        inputs = inputs_per_layer(config)
        selector_map = SelectorMap.of(config.num_hidden_layers, int(inputs.max()))
        self.selectors = Selectors(selector_map, inputs, np.zeros(selector_map.vectors * 16, np.float32))
        self.floats = FloatMap.of(self.weight_map, self.constants, selector_map)
        self.ints = IntegerMap.of(self.weight_map)
        sizes = {**self.weight_map.sizes(), "KV cache": self.cache_shape.size, "activations": self.floats.size}
        check_memory(str(container.path), {name: 4 * size for name, size in sizes.items()})
        words = read_words(container, self.weight_map)
        self.quants, self.headers = upload(words["quants"]), upload(words["headers"])
        self.words, self.scales = upload(words["vocabulary"]), upload(words["vocabulary scales"])
        self.cache = zeros(ti.f32, self.cache_shape.size)
        self.a = zeros(ti.f32, self.floats.size)
        self.integers = zeros(ti.i32, self.ints.size)
        self.logits = zeros(ti.f32, self.weight_map.tiles * 64)
        self._copy = make_copy()
        self.write(self.floats.constants, self.constants.values)
        self._selector_changes, self._thresholds = self.selectors.changes, self.selectors.thresholds.tobytes()

    def upload_selectors(self) -> None:
        """Bring the device's selectors up to date, if they have changed."""
        selectors = self.selectors
        if selectors.changes != self._selector_changes:
            self.write(self.floats.selectors, selectors.values)
        elif selectors.thresholds.tobytes() != self._thresholds:
            self.write(self.floats.selectors, selectors.thresholds.reshape(-1))
        else:
            return
        self._selector_changes, self._thresholds = selectors.changes, selectors.thresholds.tobytes()

    def read(self, start: int, size: int) -> np.ndarray:
        """f32 [size] from the f32 array's value `start` on. Waits for the device."""
        out = zeros(ti.f32, size)
        self._copy(self.a, start, out, 0, size)
        return out.to_numpy()

    def read_logits(self) -> np.ndarray:
        """Logits f32 [vocabulary] of the token that was last scored. Waits for the device."""
        return self.logits.to_numpy()[: self.config.vocab_size]

    def write(self, start: int, values: np.ndarray) -> None:
        """Put `values` (f32) into the f32 array, from its value `start` on."""
        self._copy(upload(values), 0, self.a, start, values.size)
