"""A source model run over calibration windows, layer by layer: what methods learn of the inputs of its matrices.

The source's own inputs count, so one pass serves all layers, and memory holds the weights of one.

Batches of windows go through a layer side by side, in threads: half of the work is NumPy's own, which has no threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError
from spqt_ti.model.reference import Layer, embedded, unmasked
from spqt_ti.model.sites import Site
from spqt_ti.sources.checkpoint import Checkpoint
from spqt_ti.threads import available_threads, blas_threads

__all__ = ["BATCH_TOKENS", "WORKERS", "Inputs", "SourceWalk"]

F32Array = npt.NDArray[np.float32]
Inputs = Mapping[Site, F32Array]  # of a layer's sites, [tokens, cols]
T = TypeVar("T")

BATCH_TOKENS = 2048  # whose inputs are measured at once
WORKERS = 2  # batches at once: more would need the memory of as many


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

    def run_layer(self, measure: Callable[[Inputs], T], add: Callable[[T], None]) -> None:
        """Run the windows through the next layer.

        `measure` gets the inputs of one batch after the other, in threads; `add` what it finds, in the caller's thread
        and in the order of the windows, so that sums are the same whatever the threads do.
        """
        reference, states = self._read(self.layer), self.states
        step = max(1, BATCH_TOKENS // states.shape[1])
        batches = [states[start : start + step] for start in range(0, len(states), step)]
        threads = max(1, available_threads() // WORKERS)
        with blas_threads(threads), ThreadPoolExecutor(WORKERS) as pool:
            for wave in range(0, len(batches), WORKERS):  # so that no more than that many results wait
                for found in pool.map(lambda x: measure(_run(reference, x)), batches[wave : wave + WORKERS]):
                    add(found)
        self.layer += 1

    def _read(self, layer: int) -> Layer:
        prefix = f"model.layers.{layer}."
        names = [name for name in self._checkpoint.names() if name.startswith(prefix)]
        return Layer.of(self._checkpoint.config, layer, {name: self._checkpoint.read(name) for name in names})


def _run(reference: Layer, states: F32Array) -> Inputs:
    """Inputs of the layer's sites; the states [windows, tokens, hidden] become what comes out of it."""
    traces = []
    for window in range(len(states)):  # one at a time, whose scores of attention stay in the cache
        trace = reference.run(states[window : window + 1], unmasked)
        states[window] = trace.output[0]
        traces.append(trace.inputs)
    return {site: np.concatenate([inputs[site.label][0] for inputs in traces]) for site in Site}
