"""What the runner asks of a kind of device: selectors, a decode step and a prefill that share weights and KV cache.

`cpu.engine` builds them for a few workers (CPU), `simt.engine` for groups of threads (GPU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spqt_ti.container import Container, MatrixInfo
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.faults import CacheFault
from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.model.selectors import Selectors
from spqt_ti.model.sites import Traffic

CHUNK = 256  # tokens per prefill launch: enough to make decoding a strip of weights cheap, small enough for the caches
MOST_TOKENS = 16  # that one launch decodes

Tokens = Sequence[int] | np.ndarray  # ids; an array is i32 [n]
# Called with (layer, site, inputs f32 [tokens, cols]) for every chunk; the array is overwritten afterwards.
Observer = Callable[[int, str, np.ndarray], None]


class Decode(Protocol):
    """Runs tokens one after the other. What is asked about them waits for the device."""

    @property
    def active(self) -> np.ndarray:
        """Inputs that were active in the tokens of the last run together, i32 [layers, 4]."""

    def warm_up(self, position: int) -> None:
        """Compile by running once, if nothing has run yet, at a position that is free: what is written to the cache is
        overwritten by the next token.
        """

    def run(self, token: int, position: int, steps: int = 1) -> None:
        """Decode `token` at `position`, then the best token after it, and so on: `steps` tokens (at most MOST_TOKENS)
        in all.
        """

    @property
    def neurons(self) -> np.ndarray:
        """Gate rows and up rows that were read in the tokens of the last run together by layers that predict neurons,
        i32 [layers, 2].
        """

    @property
    def best_tokens(self) -> list[int]:
        """The token of the highest logit after each token of the last run, the lowest id among equals; -1 where a logit
        is not a finite number.
        """

    def profile(self, token: int, position: int, steps: int = 1) -> dict[str, float]:
        """As `run`; the seconds that each phase took in all tokens. Raises BackendError where kernels have no clock."""

    def logits(self) -> np.ndarray:
        """Logits of the last token, f32 [vocabulary], which the next `run` may overwrite."""


class Prefill(Protocol):
    """Runs chunks of tokens."""

    def warm_up(self, position: int) -> None:
        """Run every kernel once, the first time this is called, at a position that is free."""

    def run(self, tokens: Tokens, start: int, masked: bool = False, observer: Observer | None = None) -> None:
        """Put up to CHUNK tokens, the first at position `start`, through every layer; their hidden states stay for
        `logits`.
        """

    def embed(self, tokens: Tokens) -> None:
        """Make the embeddings of up to CHUNK tokens the hidden states."""

    def run_layer(self, layer: int, start: int, count: int, masked: bool) -> None:
        """Put the hidden states of `count` tokens, the first at position `start`, through one layer."""

    def read_states(self, count: int) -> np.ndarray:
        """The hidden states of `count` tokens, f32 [count, hidden]."""

    def write_states(self, states: np.ndarray) -> None:
        """Replace the hidden states of the first tokens by f32 [count, hidden]."""

    def logits(self, first: int, last: int) -> np.ndarray:
        """Logits f32 [last - first, vocabulary] of tokens first..last-1 of the last chunk."""


class Cache(Protocol):
    """The keys and values that decode and prefill share."""

    @property
    def half(self) -> bool:
        """True where they are f16, and may overflow."""

    def fault(self, first: int, last: int) -> CacheFault | None:
        """The first layer whose keys or values of positions first..last-1 are not all finite, None if there is none.

        Positions beside these may count, up to 15 on both sides. Waits for the device.
        """

    def clear(self) -> None:
        """Zeros everywhere."""

    def read(self, position: int) -> np.ndarray:
        """Keys and values of one position, in a form that `write` takes. Waits for the device."""

    def write(self, position: int, row: np.ndarray) -> None:
        """Put back what `read` gave, to the same position."""

    def read_prefix(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of the first positions, f16 or f32 [layers, kv_heads, count, head_dim] each, on the host."""

    def write_prefix(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Put what `read_prefix` gave, of this width, at the first positions."""


class Neurons(Protocol):
    """Predictors of the neurons of some layers."""

    def set(self, predictors: Mapping[int, NeuronPredictor], executor: Executor) -> tuple[Traffic, np.ndarray]:
        """Decode and masked prefill run the feed-forward networks of these layers by predictors from now on, and no
        others. Shapes and layouts have been checked.

        Returns what a token reads from now on, of gate and up by columns, and the bytes of each layer's predictor that
        it reads, f64 [layers].
        """


class Build(Protocol):
    """Makes a model's engine."""

    def __call__(
        self, container: Container, context: int, divisions: Mapping[str, str | None], workers: int, exact: bool
    ) -> Engine:  # fmt: skip
        """The engine of a container for `context` positions (a multiple of 16), with a division of each site's product.

        `workers`: of a CPU; `exact`: decode in f32 where that is a choice. Raises ContainerError for storage that it
        does not run, and BackendError when the device cannot hold the model.
        """


@dataclass(frozen=True)
class EngineKind:
    """What is asked of a kind of engine before there is one. How a product is divided is a text that only it reads.

    `divide`, of a configuration, a site and the division that was measured to be the best for the shape of its matrix
    (None: nothing was measured): the division that is taken, None for the kernels' own preference. ValueError for one
    that kernels do not do. `traffic`: what a token reads of a model whose matrices are stored like this.
    """

    build: Build
    divide: Callable[[ModelConfig, str, str | None], str | None]
    division_title: str  # in tables
    traffic: Callable[[ModelConfig, Mapping[str, MatrixInfo]], Traffic]


@dataclass(frozen=True)
class Engine:
    """A model on a device."""

    selectors: Selectors
    decode: Decode
    prefill: Prefill
    traffic: Traffic
    cache: Cache
    neurons: Neurons
