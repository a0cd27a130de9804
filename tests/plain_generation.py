"""Sampling and beam search in plain NumPy, over the runner's logits: what generation is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.model.runner import Llama

Tokens = tuple[int, ...]
Allowed = Callable[[Tokens], np.ndarray]


class Logits:
    """Logits f32 [vocab] after the tokens of an answer: the prompt densely, its tokens one by one from the start."""

    def __init__(self, llama: Llama, prompt: list[int]) -> None:
        self._llama, self.prompt, self._known = llama, prompt, dict[Tokens, np.ndarray]()
        self._held: Tokens | None = None

    def __call__(self, tokens: Tokens) -> np.ndarray:
        if tokens not in self._known:
            todo = tokens[-1:]
            if self._held != tokens[:-1] or not tokens:
                self._llama.reset()
                self._known[()] = self._llama.prefill(self.prompt)[0].copy()
                todo = tokens
            for token in todo:
                self._known[tokens] = self._llama.decode(token).copy()
            self._held = tokens
        return self._known[tokens]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64) - logits.max()
    return rows - np.log(np.exp(rows).sum())


def drawn(logits: np.ndarray, share: float, temperature: float, top_k: int, top_p: float, min_p: float) -> int:
    """The token at which the probabilities, in the order of ids, pass `share` of all that are left."""
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp(log_softmax(logits / temperature))
    order = np.argsort(-p, kind="stable")
    left = order[:top_k]
    before = np.cumsum(p[left]) - p[left]
    left = left[before < top_p * p[left].sum()]
    left = np.sort(left[p[left] >= min_p * p[left[0]]])
    up_to = np.cumsum(p[left])
    return int(left[np.searchsorted(up_to / up_to[-1], share, side="right")])


def dry(
    tokens: list[int],
    spelled: Callable[[int], bytes],
    multiplier: float,
    base: float = 1.75,
    allowed: int = 2,
    last_n: int = 10**9,
    breakers: Collection[bytes] = (b"\n", b":", b'"', b"*"),
) -> dict[int, float]:
    """Penalties of tokens after a text: p-e-w's definition, by trying every length at every place."""
    window, text, ends = tokens[-last_n:], b"", list[int]()
    for at, token in enumerate(tokens):
        text += spelled(token)
        broken = any(text[: len(text) - cut].endswith(one) for one in breakers for cut in range(len(spelled(token))))
        ends += [at] if broken else []
    since = len(tokens) - 1 - ends[-1] if ends else len(window)
    penalties = {}
    for length in range(allowed, min(since, len(window) - 1) + 1):
        last = window[len(window) - length :]
        for end in range(max(1, length), len(window)):
            if window[end - length : end] == last and not any(one in spelled(window[end]) for one in breakers):
                penalties[window[end]] = multiplier * base ** (length - allowed)
    return penalties


def sample(
    logits: Logits,
    count: int,
    eos: Collection[int],
    seed: int,
    allowed: Allowed | None = None,
    spelled: Callable[[int], bytes] | None = None,
    dry_multiplier: float = 0.0,
    dry_allowed_length: int = 2,
    **chain: Any,
) -> list[int]:
    """Tokens of an answer. `allowed`: which tokens may follow those so far; it ends where only `eos` may."""
    generator, made = np.random.default_rng(seed), ()
    chain = {"temperature": 0.0, "top_k": 10**6, "top_p": 1.0, "min_p": 0.0} | chain
    while len(made) < count and not set(made) & set(eos):
        row = logits(made)
        if allowed is not None:
            mask = allowed(made)
            if made and set(np.flatnonzero(mask)) <= set(eos):
                break
            row = np.where(mask, row, np.float32(-np.inf))
        if dry_multiplier:
            assert spelled is not None
            row = row.astype(np.float64)
            penalties = dry([*logits.prompt, *made], spelled, dry_multiplier, allowed=dry_allowed_length)
            for token, penalty in penalties.items():
                row[token] -= penalty
        share = generator.random() if chain["temperature"] else 0.0
        made = (*made, drawn(row, share, **chain))
    return list(made)


def one_of(words: Collection[str], tokenizer: Tokenizer, vocab: int) -> Allowed:
    """Which tokens go on towards one of some words, or end it there."""
    whole = [word.encode() for word in words]
    special = tokenizer.special_ids
    raw = [b"" if token in special else tokenizer.token_bytes(token) for token in range(vocab)]

    def allowed(made: Tokens) -> np.ndarray:
        answer = b"".join(raw[token] for token in made)
        mask = np.array([bool(more) and any(word.startswith(answer + more) for word in whole) for more in raw])
        if answer in whole:
            mask[list(tokenizer.eos_ids)] = True
        return mask

    return allowed


def beam_search(
    logits: Logits, width: int, most: int, eos: Collection[int], penalty: float
) -> list[tuple[float, Tokens]]:
    """(score, tokens) of the best texts, as transformers finds them."""
    running: list[tuple[float, Tokens]] = [(0.0, ())]
    done: list[tuple[float, Tokens]] = []
    for length in itertools.count(1):
        rows = [total + log_softmax(logits(tokens)) for total, tokens in running]
        sums, vocab = np.concatenate(rows), len(rows[0])
        order = np.argsort(-sums, kind="stable")[: width * max(2, 1 + len(eos))]
        found = [(float(sums[i]), (*running[i // vocab][1], int(i % vocab))) for i in order]
        ended = [tokens[-1] in eos or length == most for _, tokens in found]
        done += [(total / length**penalty, tokens) for total, tokens in itertools.compress(found[:width], ended)]
        done = sorted(done, key=lambda one: -one[0])[:width]
        running = list(itertools.compress(found, np.logical_not(ended)))[:width]
        if not running or (len(done) == width and running[0][0] / length**penalty <= done[-1][0]):
            break
    return done
