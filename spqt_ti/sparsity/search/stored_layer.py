"""One layer of a container's model in f32 NumPy, on dequantised weights, for calibrations that try many masks on the
same inputs.

Matrices of a layer's size and a few hundred tokens are BLAS's case, and a change at one site recomputes only what
follows it.
"""

from __future__ import annotations

import numpy as np

from spqt_ti.container import Container
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.reference import Layer, Mask, Trace, unmasked
from spqt_ti.model.sites import Site, matrix_shapes

__all__ = ["Mask", "StoredLayer", "Trace", "calibration_threads", "relative_error", "unmasked"]

LARGE = 16 << 20  # weights of a matrix from which on several BLAS threads work on it


class StoredLayer(Layer):
    """A layer that comes from a container."""

    @classmethod
    def load(cls, container: Container, layer: int) -> StoredLayer:
        """Dequantise layer `layer`."""
        prefix, config = f"model.layers.{layer}.", container.config
        biases = {site.label: container.bias(layer, site) for site in Site}
        return cls(
            config,
            layer,
            {site.label: container.dequantize(container.matrix(layer, site)) for site in Site},
            {site: bias for site, bias in biases.items() if bias is not None},
            {norm.role: container.read(prefix + norm.tensor) for norm in config.norms()},
        )


def calibration_threads(config: ModelConfig, threads: int) -> int:
    """BLAS threads for a layer's products with the few hundred tokens of a sample: one for matrices of less than LARGE
    weights. Theirs take a millisecond, and threads that wait for a core of a busy machine take longer.
    """
    largest = max(shape.rows * shape.cols for shape in matrix_shapes(config).values())
    return 1 if largest < LARGE else threads


def relative_error(output: np.ndarray, dense: np.ndarray) -> float:
    """Squared error of outputs f32 [..., rows] over the squared norm of the dense ones, mean over tokens.

    Relative, because a norm will divide by a token's size, and because a few tokens (the first of a text) are a hundred
    times as large as the others and would decide alone.
    """
    return float((np.square(output - dense).sum(axis=-1) / np.square(dense).sum(axis=-1)).mean(dtype=np.float64))
