"""A source model run over calibration windows, layer by layer: what methods learn of the inputs of its matrices.

The source's own inputs count, so one pass serves all layers, and memory holds the weights of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.model.reference import Layer, embedded, unmasked
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint

__all__ = ["BATCH_TOKENS", "SourceWalk"]

F32Array = npt.NDArray[np.float32]
# Called with (site, inputs f32 [tokens, cols]), several times per site.
See = Callable[[Site, F32Array], None]

BATCH_TOKENS = 2048  # that go through a layer at once: bounds what attention and the FFN need


class SourceWalk:
    """`windows`: calibration tokens, all of the same length, each from position 0; `layer`: the next to be run.

    Raises QuantizationError for windows of different lengths or none.
    """

    def __init__(self, checkpoint: Checkpoint, windows: Sequence[Sequence[int]], method: str) -> None:
        if not windows or len({len(window) for window in windows}) != 1 or not len(windows[0]):
            raise QuantizationError(f"{method} calibrates on one or more windows of tokens of the same length")
        self._checkpoint, self.tokens = checkpoint, np.asarray(windows)
        self.layer = 0
        self._states: F32Array | None = None  # before layer `layer`, [windows, tokens, hidden]

    def restart(self) -> None:
        """From the first layer again."""
        self.layer, self._states = 0, None

    def resume(self, layer: int, states: F32Array) -> None:
        """At a layer, with the states before it, f32 [windows, tokens, hidden]."""
        self.layer, self._states = layer, states

    @property
    def states(self) -> F32Array:
        """Before layer `layer`, f32 [windows, tokens, hidden]."""
        if self._states is None:
            rows = self._checkpoint.read("model.embed_tokens.weight")[self.tokens]
            self._states = embedded(self._checkpoint.config, rows)
        return self._states

    def run_layer(self, see: See) -> None:
        """Run the windows through the next layer."""
        reference, states = self._read(self.layer), self.states
        step = max(1, BATCH_TOKENS // states.shape[1])
        for start in range(0, len(states), step):
            trace = reference.run(states[start : start + step], unmasked)
            for site in Site:
                see(site, trace.inputs[site.label].reshape(-1, trace.inputs[site.label].shape[-1]))
            states[start : start + step] = trace.output
        self.layer += 1

    def _read(self, layer: int) -> Layer:
        prefix = f"model.layers.{layer}."
        names = [name for name in self._checkpoint.names() if name.startswith(prefix)]
        return Layer.of(self._checkpoint.config, layer, {name: self._checkpoint.read(name) for name in names})
