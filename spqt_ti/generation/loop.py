"""The decode loop: from prompt tokens to new tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti import checks
from spqt_ti.errors import GenerationError
from spqt_ti.generation.constraint import Matcher
from spqt_ti.generation.dry import Dry
from spqt_ti.generation.overflow import fitting, window
from spqt_ti.generation.sampling import Sampler, Sampling
from spqt_ti.model.engine import MOST_TOKENS
from spqt_ti.model.runner import Llama
from spqt_ti.model.sites import SITES, inputs_skipped, realised_sparsity

Watcher = Callable[[np.ndarray, int], None]
LAUNCH_SECONDS = 0.1  # of greedy decoding at once: text comes in pieces of that length, and so much may be wasted


@dataclass(frozen=True)
class Stats:
    """What a generation cost. Times in seconds.

    `prompt_tokens_reused`: how many of the prompt's tokens were in the KV cache from before.
    While decoding: `realised_sparsity`: share of the layers' weights that were skipped; `inputs_skipped`: site -> share
    of its inputs; `bytes_per_token`: bytes of weights that were read.
    `slides`: how often the window slid; computing it again counts among `decode_seconds`.
    `decode_tokens` counts every token that was decoded: a few more than were made where a launch went on after the end.
    """

    prompt_tokens: int
    prompt_seconds: float
    decode_tokens: int
    decode_seconds: float
    realised_sparsity: float
    inputs_skipped: dict[str, float]
    bytes_per_token: float
    prompt_tokens_reused: int = 0
    slides: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of the tokens that were not in the KV cache from before."""
        fresh = self.prompt_tokens - self.prompt_tokens_reused
        return fresh / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Step:
    """A new token; the last one has a finish_reason ("stop": the text is over, "length": as many as asked for,
    "context": full).
    """

    token: int
    finish_reason: str | None
    stats: Stats | None


def tokens_of_launch(seconds: float, launch_seconds: float = LAUNCH_SECONDS) -> int:
    """How many greedy tokens to decode in one launch of about `launch_seconds`, where one takes `seconds`."""
    return max(1, min(MOST_TOKENS, int(launch_seconds / seconds)))


class Meter:
    """Adds up times and active inputs."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self._active = np.zeros((llama.config.num_hidden_layers, len(SITES)))
        self.prompt_tokens = self.reused = self.decode_tokens = self.slides = 0
        self.prompt_seconds = self.decode_seconds = 0.0

    def count(self, tokens: int, seconds: float) -> None:
        """Tokens that were decoded at once just now."""
        self._active += self._llama.active
        self.decode_tokens += tokens
        self.decode_seconds += seconds

    def slid(self, seconds: float) -> None:
        """The window slid just now."""
        self.slides += 1
        self.decode_seconds += seconds

    def tokens_of_launch(self, launch_seconds: float) -> int:
        """How many tokens to decode at once, as far as is known: one, if nothing is known."""
        known = self.decode_tokens > 0
        return tokens_of_launch(self.decode_seconds / self.decode_tokens, launch_seconds) if known else 1

    def stats(self) -> Stats:
        config = self._llama.config
        active = self._active / max(1, self.decode_tokens)
        known = self.decode_tokens > 0
        skipped = inputs_skipped(config, active) if known else np.zeros(len(SITES))
        return Stats(
            self.prompt_tokens, self.prompt_seconds, self.decode_tokens, self.decode_seconds,
            realised_sparsity(config, active) if known else 0.0,
            {site: float(share) for site, share in zip(SITES, skipped, strict=True)},
            self._llama.traffic.bytes_per_token(active), self.reused, self.slides,
        )  # fmt: skip


class _Turn:
    """A generation's claim to the runner: that the sequence in its cache is still the one that was left there."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama
        self.keep()

    def keep(self) -> None:
        """What is in the cache now is this generation's."""
        self._state = self._llama.sequence, self._llama.position

    def check(self) -> None:
        """Raise GenerationError where another call has used the runner since `keep`."""
        if self._state != (self._llama.sequence, self._llama.position):
            raise GenerationError(
                "this stream cannot go on: another call (a stream, generate, logits, calibrate) has used the model "
                "since, and a model holds one sequence at a time; finish one before the next, or load the model twice"
            )


def generate_tokens(
    llama: Llama,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    ends: Callable[[int], bool],
    *,
    watch: Watcher | None = None,
    launch_seconds: float = LAUNCH_SECONDS,
    matcher: Matcher | None = None,
    keep: int | None = None,
    spelled: Callable[[int], bytes] | None = None,
) -> Iterator[Step]:
    """Prefill what the cache does not have of `prompt`, then yield tokens until `ends` of one is true, the number asked
    for is reached, or the context is full. `ends` is asked once of each token that is yielded, in order, before that.

    `watch` is told of each token before it is yielded: the model's logits f32 [vocab], which hold for the call alone,
    and the token drawn from them. Tokens then come one at a time; greedy ones otherwise come in launches of about
    `launch_seconds`, during which other threads of the process stand still on a CPU. `matcher`: what the answer has to
    be. Its tokens come one at a time, and the answer ends where nothing may follow.

    `keep`: instead of ending, a full context goes on as a window that begins with so many of the prompt's tokens (see
    overflow.window), computed again; a prompt that is too long is cut in the same way. `spelled`: the text of a token,
    which DRY's sequence breakers are looked for in.

    Between two steps the runner is free: who uses it meanwhile ends this generation, which then raises GenerationError
    at its next step. Raises GenerationError, too, for an empty prompt, an id outside the vocabulary, a prompt that
    leaves no room for a token, logits that are not numbers, and DRY without `spelled`.
    """
    max_new_tokens = checks.whole_number("max_new_tokens", max_new_tokens, 1)
    with llama.exclusive():
        prompt = prompt if keep is None else fitting(prompt, keep, llama.context)
        sequence = list(prompt)
        meter = Meter(llama)
        meter.reused = llama.rewind(prompt)
        dry = _dry(sampling, spelled, llama.context, prompt)
        sampler = Sampler(sampling, prompt, llama.config.vocab_size, matcher, dry)
        llama.warm_up_prefill()
        start = time.perf_counter()
        new = [_drawn(sampler, llama.prefill(prompt[meter.reused :])[0], watch)]
        meter.prompt_tokens, meter.prompt_seconds = len(prompt), time.perf_counter() - start
        turn = _Turn(llama)
    made = 0
    in_launches = sampling.greedy and not sampling.changes_logits and watch is None and matcher is None
    while True:
        for token in new:
            made += 1
            over = ends(token) or (matcher is not None and matcher.over)
            room = max_new_tokens if keep is not None else llama.context - len(prompt)
            reason = _finish_reason(over, made, max_new_tokens, room)
            sequence.append(token)
            yield Step(token, reason, meter.stats() if reason else None)
            if reason:
                return
        with llama.exclusive():
            turn.check()
            start = time.perf_counter()
            if keep is not None and llama.position == llama.context:
                sequence = window(sequence, keep, llama.context)
                new = [_drawn(sampler, llama.prefill(sequence[llama.rewind(sequence) :])[0], watch)]
                meter.slid(time.perf_counter() - start)
                turn.keep()
                continue
            llama.warm_up_decode()
            start = time.perf_counter()
            if in_launches:
                room = min(max_new_tokens - made, llama.context - llama.position)
                new = llama.decode_greedy(token, max(1, min(room, meter.tokens_of_launch(launch_seconds))))
            else:
                new = [_drawn(sampler, llama.decode(token), watch)]
            meter.count(len(new), time.perf_counter() - start)
            turn.keep()


def _dry(sampling: Sampling, spelled: Callable[[int], bytes] | None, context: int, prompt: Sequence[int]) -> Dry | None:
    if not sampling.dry:
        return None
    if spelled is None:
        raise GenerationError("dry_multiplier needs the text of tokens, for the sequence breakers")
    return Dry(sampling, spelled, context, prompt)


def _drawn(sampler: Sampler, logits: np.ndarray, watch: Watcher | None) -> int:
    token = sampler.draw(logits)
    if watch is not None:
        watch(logits, token)
    return token


def _finish_reason(over: bool, made: int, wanted: int, room: int) -> str | None:
    """`room`: positions of the cache for new tokens, of which the last made needs none yet."""
    if over:
        return "stop"
    if made == wanted:
        return "length"
    return "context" if made > room else None
