"""The decode step: tokens through the whole model as one persistent kernel (`decode_kernel`).

No allocation and no Python between layers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from spqt_ti.backend import address, host_view, ndarray, ti
from spqt_ti.kernels.cpu.attention import CacheShape
from spqt_ti.kernels.cpu.stopwatch import seconds_per_tick
from spqt_ti.kernels.cpu.vectors import f32x16
from spqt_ti.model.cpu.decode_kernel import Phase, make_decode_kernel
from spqt_ti.model.cpu.maps import POSITION, SITE_TABLE, STEPS, TOKEN, IntegerMap, Long, Scratch, can_predict
from spqt_ti.model.cpu.neuron_map import NeuronMap
from spqt_ti.model.cpu.weights import Weights
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.model.sites import SITES


class DecodeStep:
    """Runs tokens one after the other through `weights`, on a KV cache that prefill shares.

    The selectors in `weights` say per layer and site which inputs are skipped. `exact`: multiply in f32 throughout.
    """

    def __init__(
        self, weights: Weights, cache: ti.Ndarray, cache_shape: CacheShape, workers: int, exact: bool = False
    ) -> None:  # fmt: skip
        config = weights.map.config
        self._weights, self._cache = weights, cache
        self._scratch_map = scratch = Scratch.of(weights.map, workers)
        self._scratch = ndarray(f32x16, (scratch.vectors,))
        self._view = host_view(self._scratch)
        self._view[:] = 0
        sites = config.num_hidden_layers * len(SITES)
        self._integers = IntegerMap.of(weights.map, workers)
        self._ints = ndarray(ti.i32, (self._integers.size,))
        self._ints_view = host_view(self._ints)
        self._ints_view[:] = 0
        table = weights.map.site_table().reshape(-1)
        self._ints_view[SITE_TABLE:][: table.size] = table
        most = scratch.input_stride * 16
        self._ints_view[self._integers.everything :][:most] = np.arange(most)
        self.active = self._ints_view[self._integers.counts :][:sites].reshape(-1, len(SITES))
        self._tokens = self._ints_view[self._integers.tokens :][:MOST_TOKENS]
        self.best_tokens: list[int] = []
        self._warm = False
        self._longs = ndarray(ti.i64, (Long.TICKS + len(Phase),))
        arrays = {Long.QUANTS: weights.quants, Long.TAIL: weights.tail, Long.HEADERS: weights.headers}
        for index, array in (arrays | {Long.INTEGERS: self._ints}).items():
            host_view(self._longs)[index] = address(array)
        self._make_kernel = functools.partial(
            make_decode_kernel, weights.map, cache_shape, scratch, self._integers, workers, exact
        )
        self._neurons: NeuronMap | None = None
        self._kernel = self._make_kernel()

    def use_neurons(self, neurons: NeuronMap | None, numbers: np.ndarray, parallel: bool = False) -> None:
        """Predict neurons from now on: `numbers` i32 [layers], of each layer's predictor, -1 for none; `parallel`: gate
        and up rows under one list.
        """
        self._neurons = neurons
        if neurons is not None:
            self._ints_view[self._integers.predictors :][: numbers.size] = numbers
            self._ints_view[self._integers.parallel] = parallel
        self.neurons[:] = 0
        self._kernel, self._warm = self._make_kernel(neurons=neurons), False
        self.__dict__.pop("_profiling_kernel", None)

    @property
    def neurons(self) -> np.ndarray:
        """Gate and up rows that were read in the tokens of the last run, i32 [layers, 2]."""
        layers = self._weights.map.config.num_hidden_layers
        if not can_predict(self._weights.map):
            return np.zeros((layers, 2), np.int32)
        return self._ints_view[self._integers.neurons :][: 2 * layers].reshape(layers, 2)

    def warm_up(self, position: int) -> None:
        """Run once, if nothing has run yet, at a position that is free: what it writes to the cache is overwritten by
        the next token.
        """
        if not self._warm:
            self.run(0, position)

    def run(self, token: int, position: int, steps: int = 1) -> None:
        """Decode `token` at `position`, then the best token after it, and so on: `steps` tokens, at most MOST_TOKENS.

        `best_tokens` then has the best one after each, `logits` describes the last, `active` is the sum of all.
        """
        self._warm = True
        self._launch(self._kernel, token, position, steps)

    def profile(self, token: int, position: int, steps: int = 1) -> dict[str, float]:
        """As `run`, with the seconds that each phase took worker 0.

        Raises BackendError where the kernel cannot read a clock.
        """
        ticks = host_view(self._longs)[Long.TICKS :]
        ticks[:] = 0
        self._launch(self._profiling_kernel, token, position, steps)
        seconds = ticks * seconds_per_tick()
        without = set() if self._neurons is not None else {Phase.PREDICTOR, Phase.GATE_ROWS, Phase.UP_ROWS}
        without |= set() if self._weights.map.config.rotates_down else {Phase.ROTATION}
        return {phase.label: float(seconds[phase]) for phase in Phase if phase not in without}

    @functools.cached_property
    def _profiling_kernel(self) -> Any:
        return self._make_kernel(profile=True, neurons=self._neurons)

    def _launch(self, kernel: Any, token: int, position: int, steps: int) -> None:
        w = self._weights
        self._ints_view[0] = 0
        self._ints_view[[TOKEN, POSITION, STEPS]] = token, position, steps
        self.active[:] = 0
        self.neurons[:] = 0
        kernel(
            w.quants, w.tail, w.headers, w.words, w.scales, w.constants, self._cache, self._scratch, self._ints,
            self._longs,
        )  # fmt: skip
        ti.sync()
        self.best_tokens = self._tokens[:steps].tolist()

    def logits(self) -> np.ndarray:
        """Logits of the last token, f32 [vocabulary]: a view that the next `run` overwrites."""
        weight_map = self._weights.map
        vectors = self._view[self._scratch_map.logits :][: weight_map.logit_vectors]
        return vectors.reshape(-1)[: weight_map.config.vocab_size]
