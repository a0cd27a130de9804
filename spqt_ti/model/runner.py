"""The Llama runner: weights, KV cache, and the two ways to put tokens through them.

More than one token goes densely (`prefill`); one token goes through the sparse decode step (`decode`). Knows nothing
of text.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from spqt_ti import backend, checks
from spqt_ti.backend import ti
from spqt_ti.container import Container
from spqt_ti.errors import BackendError, GenerationError
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.dispatch import choose
from spqt_ti.model.engine import CHUNK, MOST_TOKENS, Decode, Observer, Prefill, Tokens
from spqt_ti.model.engines import engine_for
from spqt_ti.model.faults import all_finite, explain
from spqt_ti.model.neurons import PredictedLayers, check_predictors, executor_of
from spqt_ti.model.predictors import Executor, NeuronPredictor
from spqt_ti.model.reference import capped, normalised
from spqt_ti.model.sites import inputs_per_site
from spqt_ti.model.tuning import Tuning
from spqt_ti.progress import says_if_slow

DEFAULT_CONTEXT = 2048
_PAGE = 16  # positions of which engines take whole multiples
COMPILING = "compiling kernels (once for these sizes of a model and its context)"


@dataclass(frozen=True)
class Prefix:
    """Tokens i32 [n] from the start of a sequence, with their keys and values [layers, kv_heads, n, head_dim], f16 or
    f32 as the runner keeps them.
    """

    tokens: np.ndarray
    keys: np.ndarray
    values: np.ndarray


class Llama:
    """A model on the device with one sequence in its KV cache.

    `backend_name`: see `backend.requested`; None: SPQT_BACKEND, else "cpu". `context`: positions that a sequence
    may have (default: the model's own, at most 2048). `threads`: the CPU's worker threads (default: all CPUs of the
    process). `exact`: decode in f32 throughout, as GPUs always do. `tuning`: what is known of
    the device (default: nothing, so that matrices are divided as by default).

    One sequence at a time, and one caller at a time: hold `exclusive()` where several threads share a runner.

    Raises ContainerError for an embedding stored in a way that kernels do not read, BackendError when the device cannot
    hold the model.
    """

    def __init__(
        self,
        container: Container,
        *,
        backend_name: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        exact: bool = False,
        tuning: Tuning | None = None,
    ) -> None:
        if threads is not None:
            threads = checks.whole_number("threads", threads, error=BackendError)
        runtime = backend.start(backend_name, threads)
        config = container.config
        self.config: ModelConfig = config
        self.backend, self.device = runtime.backend, runtime.device
        self.threads = threads or runtime.threads
        self.context, self.exact = positions(config, context), exact
        kind, known = engine_for(runtime.capabilities), tuning or Tuning(runtime.name, {}, "")
        self.choices = choose(config, known, runtime.workers(threads), kind)
        divisions = {site: choice.division for site, choice in self.choices.items()}
        engine = kind.build(container, -(-self.context // _PAGE) * _PAGE, divisions, self.threads, exact)
        self.selectors, self._decode, self._prefill = engine.selectors, engine.decode, engine.prefill
        self.traffic, self._cache = engine.traffic, engine.cache
        self._container, self._neurons = container, engine.neurons
        self.predictors: dict[int, NeuronPredictor] = {}
        self.executor = Executor.SEQUENTIAL  # of the predictors
        self._predicted: PredictedLayers | None = None
        self._position = self.sequence = self._decoded = 0
        self._prefilled: list[int] = []  # tokens of the positions from 0 on that `prefill` has filled densely
        self._warm: list[Decode | Prefill] = []  # what is compiled
        self._lock = threading.RLock()

    @property
    def position(self) -> int:
        """Tokens of the sequence so far. Setting it goes back to an earlier position: that is another sequence."""
        return self._position

    @position.setter
    def position(self, position: int) -> None:
        self._position = position
        self.sequence += 1

    def reset(self) -> None:
        """Forget the sequence. `sequence` counts how often that has happened."""
        self.position = 0

    def rewind(self, tokens: Tokens) -> int:
        """Begin a sequence that starts with `tokens`, and keep what the cache has of them: `prefill` the rest. Returns
        how many are kept, all but one at most, because the last one's logits are asked for.

        Only positions that `prefill` filled densely are kept. Its results do not depend on how a sequence was cut, so
        everything has the same bits as after `reset`. GenerationError as `prefill`, with nothing changed.
        """
        ids = checks.token_ids(tokens, self.config.vocab_size)
        self.check_length(len(ids))
        most = min(len(ids) - 1, len(self._prefilled))
        same = np.equal(ids[:most], self._prefilled[:most])
        self.position = most if same.all() else int(np.argmin(same))
        return self.position

    def prefix_tokens(self) -> list[int]:
        """Tokens that `rewind` could keep."""
        return list(self._prefilled)

    def prefix(self) -> Prefix:
        """What `rewind` could keep: the tokens that `prefill` has filled densely, with keys and values of the host."""
        ti.sync()
        return Prefix(np.array(self._prefilled, np.int32), *self._cache.read_prefix(len(self._prefilled)))

    def set_prefix(self, prefix: Prefix) -> None:
        """Put a prefix of this model, made by a runner of the same settings, into the cache for `rewind` to keep.

        The sequence that was there is forgotten. GenerationError for shapes, widths or tokens that are not this
        runner's, and for numbers that are not finite.
        """
        ids = checks.token_ids(prefix.tokens, self.config.vocab_size)
        self.check_length(len(ids))
        config = self.config
        shape = config.num_hidden_layers, config.num_key_value_heads, len(ids), config.head_dim
        dtype = np.dtype(np.float16 if self._cache.half else np.float32)
        for name, part in (("keys", prefix.keys), ("values", prefix.values)):
            if (part.shape, part.dtype) != (shape, dtype):
                raise GenerationError(f"{name} are {part.dtype} {[*part.shape]}, expected {dtype} {[*shape]}")
            if not np.isfinite(part).all():
                raise GenerationError(f"{name} are not all finite numbers")
        self.reset()
        self._forget_from(0)
        ti.sync()
        self._cache.write_prefix(prefix.keys, prefix.values)
        self._prefilled = ids.tolist()

    def exclusive(self) -> AbstractContextManager[Any]:
        """What to hold (`with`) while nobody else may use the runner; a thread may take it several times.

        Raises BackendError in a process that was forked from the one that loaded the model.
        """
        backend.check_process()
        return self._lock

    @property
    def thresholds(self) -> np.ndarray:
        """f32 [layers, 4] in the order of SITES; writing to it changes what decoding skips. 0 runs a site dense."""
        return self.selectors.thresholds

    def set_predictors(
        self, predictors: Mapping[int, NeuronPredictor] | None, executor: Executor | str = Executor.SEQUENTIAL
    ) -> None:  # fmt: skip
        """Run the feed-forward networks of these layers, and no others, by predictors from now on: decoding reads the
        gate and up rows of predicted neurons alone, and masked prefill zeroes what the others put into down.

        Thresholds of gate_up count for nothing in these layers. Raises PolicyError for predictors that do not fit the
        model, an unknown executor, and gate and up that are not in the row layout.
        """
        predictors, executor = dict(predictors or {}), executor_of(executor)
        check_predictors(self._container, predictors)
        if not predictors and not self.predictors:
            return
        self.traffic, nbytes = self._neurons.set(predictors, executor)
        self._warm.clear()  # there are other kernels now
        sizes = self.config.hidden_size, self.config.intermediate_size
        self._predicted = PredictedLayers(self.traffic, nbytes, *sizes) if predictors else None
        self.predictors, self.executor = predictors, executor

    @property
    def active(self) -> np.ndarray:
        """Inputs that were active in the last decoded token, [layers, 4]; after `decode_greedy` in all of its tokens
        together. Gate and up with a predictor: as many inputs as what was read of them amounts to (PredictedLayers).
        """
        if self._predicted is None:
            return self._decode.active
        return self._predicted.active(self._decode.active, self._decode.neurons, self._decoded)

    @property
    def neurons(self) -> np.ndarray:
        """Gate rows and up rows that the tokens of `active` read in layers with predictors, i32 [layers, 2]."""
        return self._decode.neurons

    @property
    def predictor_bytes(self) -> np.ndarray:
        """What a token reads of each layer's predictor, f64 [layers]; 0 where there is none."""
        return np.zeros(len(self.thresholds)) if self._predicted is None else self._predicted.predictor_bytes

    def inputs(self) -> np.ndarray:
        """Inputs that a token has at each site of the widest layer, i32 [4]."""
        return inputs_per_site(self.config)

    def warm_up_prefill(self) -> None:
        """Compile the prefill kernels, which otherwise happens inside the first `prefill`.

        Raises GenerationError where the cache is full: running them needs a free position.
        """
        self._check_room(1)
        self._forget_from(self.position)
        self._compile(self._prefill)

    def warm_up_decode(self) -> None:
        """Compile the decode kernel, which otherwise happens inside the first `decode`.

        Raises GenerationError where the cache is full: running it needs a free position.
        """
        self._check_room(1)
        self._forget_from(self.position)
        self._compile(self._decode)

    def _compile(self, part: Decode | Prefill) -> None:
        if part in self._warm:  # asked before every token: a thread that waits to say something would cost 80 us
            return
        with says_if_slow(COMPILING):
            part.warm_up(self.position)
        self._warm.append(part)

    def prefill(
        self,
        tokens: Tokens,
        logits: str = "last",
        masked: bool = False,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """Append tokens densely; logits f32 [n, vocab] of "all" tokens, the "last" one or "none".

        `masked` zeroes the inputs that decoding would skip, for every token. Raises GenerationError for an id outside
        the vocabulary, for more tokens than the context has room for, and for another word than these as `logits`.
        """
        if logits not in ("all", "last", "none"):
            raise GenerationError(f'logits must be "all", "last" or "none", not {logits!r}')
        ids = self._check(tokens)
        rows, left = [], len(ids)
        for count in self._chunks(ids, masked, observer):
            left -= count
            if logits == "all" or (logits == "last" and not left):
                rows.append(self._prefill.logits(0 if logits == "all" else count - 1, count))
        ti.sync()
        if not rows:
            return np.zeros((0, self.config.vocab_size), np.float32)
        return self._capped(self._finite(np.concatenate(rows) if len(rows) > 1 else rows[0]))

    def final_states(self, tokens: Tokens) -> np.ndarray:
        """Append tokens densely; their hidden states f32 [n, hidden] after the final norm, of which the head makes
        logits. Raises GenerationError as `prefill`.
        """
        ids = self._check(tokens)
        parts = [self._prefill.read_states(count) for count in self._chunks(ids, False, None)]
        states = np.concatenate(parts) if parts else np.zeros((0, self.config.hidden_size), np.float32)
        weight = self._container.read("model.norm.weight") + np.float32(self.config.architecture.norm_offset)
        return self._finite(normalised(states, weight, self.config.rms_norm_eps))

    def embed(self, tokens: Tokens) -> np.ndarray:
        """Hidden states f32 [n, hidden] before the first layer, of a short sequence (see `layers`)."""
        self._check_short(len(tokens))
        self.reset()
        self._forget_from(0)
        self._prefill.embed(self._check(tokens))
        return self._prefill.read_states(len(tokens))

    def layers(self, states: np.ndarray, first: int, masked: bool = False) -> Iterator[np.ndarray]:
        """Put the hidden states f32 [n, hidden] of a sequence from its start through layer `first` and those after it;
        yields the states after each layer. Whatever sequence there was is forgotten.

        `masked` as for `prefill`. For sequences of one chunk (256 tokens); GenerationError for longer ones.
        """
        self._check_short(len(states))
        self.reset()
        self._forget_from(0)
        self._prefill.write_states(states)
        for layer in range(first, self.config.num_hidden_layers):
            self._prefill.run_layer(layer, 0, len(states), masked)
            yield self._prefill.read_states(len(states))

    def head(self, states: np.ndarray) -> np.ndarray:
        """Logits f32 [n, vocab] of hidden states f32 [n, hidden] after the last layer, of one chunk at most."""
        self._check_short(len(states))
        self._prefill.write_states(states)
        return self._capped(self._finite(self._prefill.logits(0, len(states))))

    def decode(self, token: int) -> np.ndarray:
        """Append one token through the sparse step; logits f32 [vocab], a view that the next call overwrites.

        Raises GenerationError, here as everywhere, where logits are not finite numbers: it names the layer, and the
        sequence is forgotten.
        """
        self.submit(token)
        if self._cache.half:  # sees keys and values, too; on a GPU it would be another transfer
            self._check_best(self._decode.best_tokens)
        return self._capped(self._finite(self._decode.logits()))

    def keys_and_values(self, position: int) -> np.ndarray:
        """What the cache has of one position of the sequence, for `resume`."""
        return self._cache.read(position)

    def resume(self, position: int, rows: Sequence[np.ndarray]) -> None:
        """Go on with another sequence: that of the cache up to `position`, then the tokens of which `rows` are the keys
        and values, as they were when these tokens stood at the same positions. Decoding goes on with the same bits.

        Raises GenerationError for more tokens than the context has room for.
        """
        self.check_length(position + len(rows))
        self._forget_from(position)
        for at, row in enumerate(rows, position):
            self._cache.write(at, row)
        self.position = position + len(rows)

    def submit(self, token: int) -> None:
        """Append one token as `decode` does, without waiting for a GPU."""
        token = self._check_token(token)
        self._forget_from(self.position)
        self._decode.run(token, self.position)
        self._position, self._decoded = self._position + 1, 1

    def decode_greedy(self, token: int, count: int) -> list[int]:
        """Append one token, then the best token after it, and so on, `count` (at most MOST_TOKENS) in one launch.
        Returns the best token after each: the last of them is not appended.

        A launch costs a few hundred microseconds beside its tokens.
        """
        token = self._check_launch(token, count)
        self._forget_from(self.position)
        self._decode.run(token, self.position, count)
        self._position, self._decoded = self._position + count, count
        return self._check_best(self._decode.best_tokens)

    def profile(self, token: int, count: int = 1) -> dict[str, float]:
        """As `decode_greedy`; returns the seconds that each phase took (see decode_kernel.Phase).

        Raises BackendError where the kernel cannot read a clock.
        """
        token = self._check_launch(token, count)
        self._forget_from(self.position)
        seconds = self._decode.profile(token, self.position, count)
        self._position, self._decoded = self._position + count, count
        return seconds

    def best_token(self) -> int:
        """Token with the highest logit after the last one, found by the kernel; the lowest id among equals."""
        return self._check_best(self._decode.best_tokens)[-1]

    def _chunks(self, ids: np.ndarray, masked: bool, observer: Observer | None) -> Iterator[int]:
        """Append tokens chunk by chunk; yields how many are in each, whose hidden states are on the device."""
        for begin in range(0, len(ids), CHUNK):
            chunk = ids[begin : begin + CHUNK]
            begun = self.position
            self._forget_from(begun)
            self._prefill.run(chunk, begun, masked, observer)
            self._position += len(chunk)
            self._check_cache(begun)
            if not masked and len(self._prefilled) == begun:
                self._prefilled += chunk.tolist()
            yield len(chunk)

    def _forget_from(self, position: int) -> None:
        """What is written from this position on is no longer what `prefill` has put there."""
        del self._prefilled[position:]

    def _capped(self, logits: np.ndarray) -> np.ndarray:
        """A cap changes no order, so the device, which looks for the best token, does without."""
        cap = self.config.scales.logit_cap
        return capped(logits, cap) if cap else logits

    def _finite(self, logits: np.ndarray) -> np.ndarray:
        if not all_finite(logits):
            raise self._broken()
        return logits

    def _check_best(self, tokens: list[int]) -> list[int]:
        if min(tokens) < 0:
            raise self._broken()
        return tokens

    def _check_cache(self, first: int) -> None:
        """An infinite key need not show in the logits: prefill's attention would take it for an ordinary one."""
        if self._cache.half:
            ti.sync()
            if self._cache.fault(first, self.position) is not None:
                raise self._broken()

    def _broken(self) -> GenerationError:
        """What to raise where numbers are not finite. Nothing of them stays in the cache."""
        fault = self._cache.fault(0, self.position)
        self.reset()
        self._forget_from(0)
        self._cache.clear()
        sparse = bool((self.thresholds > 0).any())
        return GenerationError(explain(fault, self._cache.half, sparse, self.config.num_hidden_layers))

    def _check_short(self, count: int) -> None:
        longest = min(CHUNK, self.context)
        if not 0 < count <= longest:
            raise GenerationError(f"{count} tokens in one chunk, which holds 1 to {longest}")

    def _check_launch(self, token: int, count: int) -> int:
        token = self._check_token(token)
        if not 1 <= count <= min(MOST_TOKENS, self.context - self.position):
            raise GenerationError(f"{count} tokens in one launch, with room for {self.context - self.position}")
        return token

    def _check_token(self, token: int) -> int:
        token = checks.whole_number("a token id", token)
        if not 0 <= token < self.config.vocab_size:
            raise GenerationError(f"token id {token} is outside the vocabulary of {self.config.vocab_size}")
        self._check_room(1)
        return token

    def _check(self, tokens: Tokens) -> np.ndarray:
        ids = checks.token_ids(tokens, self.config.vocab_size)
        self._check_room(len(ids))
        return ids

    def _check_room(self, count: int) -> None:
        self.check_length(self.position + count)

    def check_length(self, tokens: int) -> None:
        """Raise GenerationError where a sequence of so many tokens does not fit the context."""
        if tokens > self.context:
            raise GenerationError(too_long(tokens, self.context, self.config.max_position_embeddings))


def positions(config: ModelConfig, context: int | None) -> int:
    """Positions that a sequence may have where `context` are asked for: by default as many as the model allows, at most
    DEFAULT_CONTEXT. Raises GenerationError for what the model does not have.
    """
    wanted = min(config.max_position_embeddings, DEFAULT_CONTEXT)
    if context is not None:
        wanted = checks.whole_number("context", context)
        if not 1 <= wanted <= config.max_position_embeddings:
            raise GenerationError(f"context must be between 1 and {config.max_position_embeddings}, not {context}")
    return wanted


def too_long(tokens: int, context: int, most: int) -> str:
    """What is said of more tokens than the context holds; `most`: positions that the model has been trained for."""
    more = f"ask for a longer one with context= (--context), up to this model's {most}"
    return f"{tokens} tokens do not fit the context of {context}; {more if context < most else 'the model has no more'}"
