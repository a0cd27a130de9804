"""Beam search: the texts that are likeliest as a whole, among those that a few beginnings at a time lead to.

The rules are those of transformers' beam search without sampling. The runner has one sequence, so beams take turns.
Each token keeps its keys and values on the host, and a beam's turn begins by putting back those in which it differs
from the beam before: a copy, so that results have the bits of a beam that had a cache of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from spqt_ti import checks
from spqt_ti.errors import GenerationError
from spqt_ti.generation.constraint import Matcher
from spqt_ti.generation.loop import Meter, Stats
from spqt_ti.model.runner import Llama

MOST_BEAMS = 64


@dataclass(frozen=True)
class Beams:
    """How to search. `width`: beginnings that are kept; `length_penalty`: a text's log-probability is divided by its
    number of tokens to this power before texts of different lengths are compared (0 compares sums, 1 means).

    Raises GenerationError for values out of range.
    """

    width: int = 4
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        if checks.whole_number("beams", self.width, 1) > MOST_BEAMS:
            raise GenerationError(f"there may be {MOST_BEAMS} beams, not {self.width}")
        checks.real_number("length_penalty", self.length_penalty)


@dataclass(frozen=True)
class Found:
    """A text that was found: its tokens, an end of text included; the natural logarithm of its probability by the
    model; what it was compared by; "stop", "length" or "context" (see loop.Step).
    """

    tokens: list[int]
    log_probability: float
    score: float
    finish_reason: str


class _Node:
    """A token after others. `row`: its keys and values, once it has been decoded."""

    def __init__(self, token: int, parent: _Node | None, log_probability: float, matcher: Matcher | None) -> None:
        self.token, self.parent, self.log_probability, self.matcher = token, parent, log_probability, matcher
        self.length: int = 1 if parent is None else parent.length + 1
        self.row: np.ndarray | None = None

    def path(self) -> list[_Node]:
        """From the first token to this one."""
        nodes: list[_Node] = []
        node: _Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class _Turns:
    """Beams by turns on one runner, which holds `prompt` positions and then the tokens of `_held`."""

    def __init__(self, llama: Llama, prompt: int, meter: Meter) -> None:
        self._llama, self._prompt, self._meter, self._held = llama, prompt, meter, list[_Node]()

    def logits(self, node: _Node) -> np.ndarray:
        """Logits f32 [vocab] after a node, a view that the next call overwrites."""
        *before, _ = path = node.path()
        start = time.perf_counter()
        same = next((i for i, (a, b) in enumerate(zip(before, self._held, strict=False)) if a is not b), None)
        same = min(len(before), len(self._held)) if same is None else same
        rows = [other.row for other in before[same:]]
        self._llama.resume(self._prompt + same, [row for row in rows if row is not None])
        logits = self._llama.decode(node.token)
        node.row = self._llama.keys_and_values(self._prompt + len(before))
        self._held = path
        self._meter.count(1, time.perf_counter() - start)
        return logits


def beam_search(
    llama: Llama,
    prompt: Sequence[int],
    max_new_tokens: int,
    beams: Beams,
    eos_ids: Collection[int],
    matcher: Matcher | None = None,
) -> tuple[list[Found], Stats]:
    """The best texts of at most `max_new_tokens` after `prompt`, the best one first: `beams.width` of them, or fewer
    where there are no more. `matcher`: what they have to be. The runner is held until the end.

    The prompt is run densely, tokens as decoding does. Each step decodes one token per beam. Memory: the keys and
    values of each token of each beam. Raises GenerationError as `generate_tokens` does.
    """
    max_new_tokens = checks.whole_number("max_new_tokens", max_new_tokens, 1)
    with llama.exclusive():
        meter = Meter(llama)
        meter.reused = llama.rewind(prompt)
        llama.warm_up_prefill()
        start = time.perf_counter()
        logits = llama.prefill(prompt[meter.reused :])[0]
        meter.prompt_tokens, meter.prompt_seconds = len(prompt), time.perf_counter() - start
        room = llama.context - len(prompt) + 1
        search = _Search(beams, eos_ids, min(max_new_tokens, room), "length" if max_new_tokens <= room else "context")
        turns = _Turns(llama, len(prompt), meter)
        running = search.step([(None, logits, matcher)])
        while running:
            if running[0].length == 1:
                llama.warm_up_decode()
            running = search.step([(node, turns.logits(node).copy(), node.matcher) for node in running])
        return search.results(), meter.stats()


class _Search:
    """What has been found so far, and which tokens to go on with."""

    def __init__(self, beams: Beams, eos_ids: Collection[int], most: int, cut: str) -> None:
        self._beams, self._eos_ids, self._most, self._cut = beams, eos_ids, most, cut
        self._done: list[tuple[float, _Node, str]] = []  # with their scores, best first

    def step(self, ends: Sequence[tuple[_Node | None, np.ndarray, Matcher | None]]) -> list[_Node]:
        """Take the logits after each beam; the beams of the next step, none where nothing better can follow."""
        width = self._beams.width
        # With every end of text among the candidates there are still `width` that go on.
        count = width * max(2, 1 + len(self._eos_ids))
        found = [node for end in ends for node in _best(*end, count)]
        found.sort(key=lambda node: -node.log_probability)  # stable: among equals the better beam, the lower id
        running = []
        for rank, node in enumerate(found[:count]):
            reason = self._finish_reason(node)
            if reason is None:
                running.append(node)
            elif rank < width:
                self._done.append((self._score(node.log_probability, node.length), node, reason))
        self._done.sort(key=lambda done: -done[0])
        del self._done[width:]
        running = running[:width]
        if running and len(self._done) == width:
            reachable = self._score(running[0].log_probability, running[0].length)
            if reachable <= self._done[-1][0]:
                return []
        return running

    def results(self) -> list[Found]:
        """Best first. GenerationError where a constraint has led nowhere."""
        if not self._done:
            raise GenerationError("no text was found")
        return [
            Found([one.token for one in node.path()], node.log_probability, score, reason)
            for score, node, reason in self._done
        ]

    def _score(self, log_probability: float, length: int) -> float:
        return log_probability / length**self._beams.length_penalty

    def _finish_reason(self, node: _Node) -> str | None:
        if node.token in self._eos_ids or (node.matcher is not None and node.matcher.over):
            return "stop"
        return self._cut if node.length == self._most else None


def _best(parent: _Node | None, logits: np.ndarray, matcher: Matcher | None, count: int) -> list[_Node]:
    """The `count` likeliest tokens after a beam, fewer where a constraint allows no more."""
    highest = float(logits.max())
    below = logits.astype(np.float64) - highest
    total = math.log(np.exp(below).sum()) - (0.0 if parent is None else parent.log_probability)
    if matcher is not None:
        below[~matcher.allowed()] = -np.inf
    count = min(count, len(below))
    tokens = np.flatnonzero(below >= np.partition(below, len(below) - count)[len(below) - count])
    tokens = tokens[np.argsort(-below[tokens], kind="stable")][:count]
    nodes = []
    for token in tokens[np.isfinite(below[tokens])].tolist():
        following = None if matcher is None else matcher.copy()
        if following is not None:
            following.take(token)
        nodes.append(_Node(token, parent, float(below[token]) - total, following))
    return nodes
