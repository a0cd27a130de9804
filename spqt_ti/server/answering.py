"""Orders carried out on the engine thread: prompts scored, answers generated, policies changed between requests."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from spqt_ti.api import Model, check_level
from spqt_ti.errors import PolicyError
from spqt_ti.generation.answer import Answer
from spqt_ti.generation.embedding import embedding
from spqt_ti.generation.loop import Stats, Step, generate_tokens
from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.generation.tool_calls import CallReader, ToolCall
from spqt_ti.model.engine import CHUNK
from spqt_ti.server.engine import Job
from spqt_ti.server.errors import ApiError
from spqt_ti.server.orders import Embedding, EmbeddingOrder, Order, Piece, Skip, Token, Tools, Usage
from spqt_ti.sparsity.policy import SparsityPolicy

# Kernels hold Python's lock, so the thread of the sockets stands still during a launch. The engine makes launches short
# and sleeps between them, which costs 2 % of its time. Short answers would otherwise arrive at their end.
LAUNCH_SECONDS = 0.02
_PAUSE_SECONDS = 0.0004
_ROWS = 32  # logits f64 at once
_LEVELS = 100  # steps of the slider: as many policies are kept


class Answerer:
    """A model and the policies that requests may ask for. Used on the engine thread alone.

    `policies`: by name. The policy in force when this is made is that of requests that do not choose.
    """

    def __init__(self, model: Model, policies: Mapping[str, SparsityPolicy]) -> None:
        self.model, self._policies = model, dict(policies)
        self._default = model.policy
        for policy in self._policies.values():
            policy.check(model.container.fingerprint, model.llama.config.num_hidden_layers)
        self._state: tuple[Any, bool] = object(), False
        self._paused = 0.0  # when: 0 before the first token of an order
        self._levels: dict[int, SparsityPolicy] = {}
        self._inputs = np.maximum(np.asarray(model.llama.inputs(), np.float64), 1)

    def carry_out(self, order: Order, job: Job) -> None:
        """Deliver an order's pieces, then its Usage. Raises Cancelled, and what generation raises."""
        with self.model.llama.exclusive():
            usage = Usage()
            start = time.monotonic()
            for number, prompt in enumerate(order.prompts):
                self._prompt(order, prompt, number * order.n, usage, job, start)
            job.deliver(usage)

    def embed(self, order: EmbeddingOrder, job: Job) -> None:
        """Deliver an order's embeddings, then its Usage. Raises Cancelled, and ApiError where time is up."""
        usage = Usage()

        with self.model.llama.exclusive():
            for index, prompt in enumerate(order.prompts):
                usage.prompt_tokens += len(prompt)
                job.deliver(
                    Embedding(
                        index, embedding(self.model.llama, prompt, order.pooling, between=lambda: _check_time(job))
                    )
                )
        job.deliver(usage)

    def _prompt(self, order: Order, prompt: list[int], first: int, usage: Usage, job: Job, start: float) -> None:
        usage.prompt_tokens += len(prompt)
        policy = self._policy(order.skip)
        if order.echo:
            tokens = tuple(Token(token) for token in prompt)
            if order.logprobs is not None:
                self._use(policy, scoring=True)
                tokens = tuple(self._score(prompt, order.logprobs, job))
            text = self.model.tokenizer.decode(prompt, skip_special=False)
            reason = None if order.max_tokens else "length"
            for index in range(first, first + order.n):
                job.deliver(Piece(index, text, tokens, reason))
        if not order.max_tokens:
            return
        self._use(policy)
        self._paused = 0.0
        for choice in range(order.n):
            reused = self._prefill_but_last(prompt, job)
            if choice == 0 and not (order.echo and order.logprobs is not None):
                usage.reused_tokens += reused
            seed = order.sampling.seed + choice
            sampling = dataclasses.replace(order.sampling, seed=seed)
            one = dataclasses.replace(order, sampling=sampling)
            for piece in self._answer(one, prompt, first + choice, usage, job):
                usage.first_token_seconds = usage.first_token_seconds or time.monotonic() - start
                job.deliver(piece)
                self._pause(job)

    def _pause(self, job: Job) -> None:
        if not self._paused:
            job.wait_until_sent()
        elif time.monotonic() - self._paused < LAUNCH_SECONDS:
            return
        else:
            time.sleep(_PAUSE_SECONDS)
        self._paused = time.monotonic()

    def _prefill_but_last(self, prompt: list[int], job: Job) -> int:
        """Prefill in chunks between which the job may be cancelled; how many tokens were in the cache before."""
        llama = self.model.llama
        reused = llama.rewind(prompt)
        for begin in range(reused, len(prompt) - CHUNK, CHUNK):
            _check_time(job)
            llama.prefill(prompt[begin : begin + CHUNK], "none")
        return reused

    def _answer(self, order: Order, prompt: list[int], index: int, usage: Usage, job: Job) -> Iterator[Piece]:
        tokenizer, llama = self.model.tokenizer, self.model.llama
        decoder = tokenizer.stream(continues=order.continues, show=_markers(order, tokenizer))
        answer = Answer(decoder, tokenizer.eos_ids, order.stop)
        calls = _Calls(order.tools)
        watched: list[Token] = []
        matcher = None if order.constraint is None else self.model.matcher(order.constraint)
        steps = generate_tokens(
            llama, prompt, order.max_tokens, order.sampling, answer.ends,
            watch=_watcher(order, watched), launch_seconds=LAUNCH_SECONDS, matcher=matcher,
            keep=order.keep, spelled=tokenizer.spelled,
        )  # fmt: skip
        for made, step in enumerate(steps, 1):
            job.check()
            reason = _reason(step, job, usage)
            text, called = calls.read(answer.take(last=reason is not None), last=reason is not None)
            tokens = tuple(watched) if order.logprobs is not None else (Token(step.token),)
            watched.clear()
            # The first token comes from the prompt, densely: nothing was skipped for it.
            skipped = self._skipped() if order.heat_map and made > 1 else None
            if step.stats is not None:
                _add(usage, step.stats)
            if reason is not None:
                usage.completion_tokens += made
            yield Piece(index, text, tokens, calls.reason(reason), skipped, called)
            if reason is not None:
                return

    def _skipped(self) -> list[list[float]]:
        shares = 1 - np.asarray(self.model.llama.active, np.float64) / self._inputs
        return [[round(float(share), 3) for share in row] for row in np.clip(shares, 0, 1)]

    def _score(self, prompt: list[int], count: int, job: Job) -> Iterator[Token]:
        """Tokens of a prompt with their log-probabilities, as if each token had been decoded (masked prefill)."""
        llama = self.model.llama
        llama.reset()
        masked = self.model.policy is not None
        yield Token(prompt[0])
        for begin in range(0, len(prompt), CHUNK):
            _check_time(job)
            logits = llama.prefill(prompt[begin : begin + CHUNK], "all", masked=masked)
            nexts = prompt[begin + 1 : begin + 1 + CHUNK]
            for at in range(0, len(nexts), _ROWS):
                yield from _tokens(logits[at : at + _ROWS], nexts[at : at + _ROWS], count)

    def _policy(self, skip: Skip) -> SparsityPolicy | None:
        """The policy that a request asks for. Raises PolicyError for unknown names and levels out of range."""
        if skip.policy is not None:
            if skip.policy not in self._policies:
                known = ", ".join(self._policies) or "none"
                raise PolicyError(f"there is no policy {skip.policy[:100]!r} here; there are: {known}")
            return self._policies[skip.policy]
        if skip.level is None:
            return self._default
        level = round(check_level(skip.level) * _LEVELS)
        if level and level not in self._levels:
            self._levels[level] = self.model.calibrate().policy(level / _LEVELS)
        return self._levels.get(level)

    def _use(self, policy: SparsityPolicy | None, scoring: bool = False) -> None:
        """Decode so from now on. `scoring`: all of a policy's thresholds count, also where skipping does not pay, as in
        evaluation/.
        """
        if scoring or self._state != (policy, scoring):
            self.model.apply(policy)
            if scoring and policy is not None:
                self.model.llama.thresholds[:] = policy.thresholds
        self._state = policy, scoring


def _check_time(job: Job) -> None:
    """ApiError where time is up, for work of which a part is of no use; Cancelled as `Job.check`."""
    job.check()
    if job.overdue:
        raise ApiError(400, "the request took too long on the engine: send fewer texts, or shorter ones, at once")


class _Calls:
    """Calls of tools in one answer."""

    def __init__(self, tools: Tools | None) -> None:
        self._tools, self._found = tools, False
        self._reader = CallReader(tools.form, tools.names, tools.most) if tools else None

    def read(self, text: str, *, last: bool) -> tuple[str, tuple[ToolCall, ...]]:
        """More of the answer's text, without the calls in it, and these."""
        if self._reader is None:
            return text, ()
        text, calls = self._reader.push(text, last=last)
        self._found = self._found or bool(calls)
        return text, tuple(calls)

    def reason(self, reason: str | None) -> str | None:
        """Why the answer ends: where the model chose to call, for that."""
        chosen = self._tools is not None and self._found and not self._tools.named
        return "tool_calls" if chosen and reason == "stop" else reason


def _markers(order: Order, tokenizer: Tokenizer) -> list[int]:
    """Control tokens that calls are known by."""
    texts = (order.tools.form.begin, order.tools.form.end) if order.tools else ()
    found = [tokenizer.special_id(text) for text in texts if text]
    return [token for token in found if token is not None]


def _watcher(order: Order, watched: list[Token]) -> Callable[[np.ndarray, int], None] | None:
    """What adds each token to `watched`; None where nobody looks, so that tokens may come in launches."""
    if order.logprobs is None:
        return (lambda logits, token: None) if order.heat_map else None
    count = order.logprobs
    return lambda logits, token: watched.extend(_tokens(logits[None], [token], count))


def _tokens(logits: np.ndarray, tokens: list[int], count: int) -> Iterator[Token]:
    """Tokens that follow rows of logits f32 [n, vocab], with log-probabilities in f64."""
    if not tokens:
        return
    rows = logits[: len(tokens)].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for row, token in zip(rows, tokens, strict=True):
        best = np.argpartition(-row, min(count, len(row) - 1))[:count]
        best = best[np.lexsort((best, -row[best]))]
        yield Token(token, float(row[token]), tuple((int(one), float(row[one])) for one in best))


def _reason(step: Step, job: Job, usage: Usage) -> str | None:
    """OpenAI's word for why an answer ends here. Time is up between two tokens."""
    if step.finish_reason is None and job.overdue:
        usage.cut_by_time = True
        return "length"
    return "length" if step.finish_reason == "context" else step.finish_reason


def _add(usage: Usage, stats: Stats) -> None:
    usage.slides += stats.slides
    total = usage.decoded + stats.decode_tokens
    if not total:
        return
    share = stats.decode_tokens / total
    usage.sparsity += share * (stats.realised_sparsity - usage.sparsity)
    usage.bytes_per_token += share * (stats.bytes_per_token - usage.bytes_per_token)
    usage.decoded, usage.decode_seconds = total, usage.decode_seconds + stats.decode_seconds
