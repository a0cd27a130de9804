"""Choosing the next token from logits.

Each step is that of transformers' processor of the same name, in its order: penalties and biases, temperature, top-k,
top-p, min-p, typical-p. Tokens that a constraint forbids are taken out before all of them. Penalties of frequency and
presence are OpenAI's, and the last one, of repetitions, is DRY (see dry.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spqt_ti import checks
from spqt_ti.errors import GenerationError
from spqt_ti.generation.constraint import Matcher

F64Array = npt.NDArray[np.float64]

_PART = 256  # tokens
_MOST_BREAKERS, _LONGEST_BREAKER = 64, 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 is greedy; top_k, top_p, min_p and typical_p narrow the choice.

    `min_p`: tokens of at least this share of the likeliest one's probability. `typical_p`: the tokens whose surprise is
    nearest to the expected one (arXiv 2202.00666), up to this probability. `repetition_penalty` divides positive logits
    of the tokens of prompt and answer, and multiplies negative ones. `frequency_penalty` is taken off the logit of a
    token for each time that the answer has it, `presence_penalty` once. `logit_bias`: token id -> what is added.

    `dry_multiplier` above 0 takes multiplier * base^(n - allowed length) off the logit of a token that would make a
    repetition of n tokens longer, n being the allowed length or more. Repetitions are looked for in the last
    `dry_penalty_last_n` tokens of prompt and answer (-1: as many as the context has, 0: none), and do not reach back
    over a text of `dry_sequence_breakers`.

    Raises GenerationError for values of another type or outside their range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")

    def __post_init__(self) -> None:
        if checks.real_number("temperature", self.temperature) < 0:
            raise GenerationError(f"temperature must be 0 or more, not {self.temperature}")
        checks.whole_number("seed", self.seed, 0)
        if self.top_k is not None:
            checks.whole_number("top_k", self.top_k, 1)
        for name in ("top_p", "min_p", "typical_p"):
            share = getattr(self, name)
            if share is not None and not 0 < checks.real_number(name, share) <= 1:
                raise GenerationError(f"{name} must be above 0 and at most 1, not {share}")
        if checks.real_number("repetition_penalty", self.repetition_penalty) <= 0:
            raise GenerationError(f"repetition_penalty must be above 0, not {self.repetition_penalty}")
        for name in ("frequency_penalty", "presence_penalty"):
            checks.real_number(name, getattr(self, name))
        if not isinstance(self.logit_bias, Mapping):
            raise GenerationError(f"logit_bias maps token ids to numbers, it is no {type(self.logit_bias).__name__}")
        for token, bias in self.logit_bias.items():
            checks.whole_number("a token id of logit_bias", token, 0)
            checks.real_number(f"logit_bias of token {token}", bias)
        self._check_dry()

    def _check_dry(self) -> None:
        for name, least in (("dry_multiplier", 0), ("dry_base", 1)):
            if checks.real_number(name, getattr(self, name)) < least:
                raise GenerationError(f"{name} must be {least} or more, not {getattr(self, name)}")
        checks.whole_number("dry_allowed_length", self.dry_allowed_length, 0)
        checks.whole_number("dry_penalty_last_n", self.dry_penalty_last_n, -1)
        breakers = self.dry_sequence_breakers
        if not isinstance(breakers, Sequence) or isinstance(breakers, str | bytes):
            raise GenerationError(f"dry_sequence_breakers is a list of strings, not {type(breakers).__name__}")
        if len(breakers) > _MOST_BREAKERS:
            raise GenerationError(f"dry_sequence_breakers has {len(breakers)} strings, of {_MOST_BREAKERS} at most")
        for breaker in breakers:
            if not 0 < len(checks.text("a string of dry_sequence_breakers", breaker)) <= _LONGEST_BREAKER:
                raise GenerationError(f"dry_sequence_breakers has strings of 1 to {_LONGEST_BREAKER} characters")

    @property
    def greedy(self) -> bool:
        """True where the likeliest token is taken."""
        return self.temperature == 0

    @property
    def narrows(self) -> bool:
        """True where some tokens cannot be drawn."""
        return (self.top_k, self.top_p, self.min_p, self.typical_p) != (None, None, None, None)

    @property
    def changes_logits(self) -> bool:
        """True where the tokens so far or biases change the logits: then the device's own argmax will not do."""
        penalties = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias) or self.dry

    @property
    def dry(self) -> bool:
        """True where repetitions are penalised."""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n != 0


class RepetitionPenalty(Protocol):
    """What takes repetitions off the logits while a text grows (see dry.py)."""

    def penalised(self, values: np.ndarray) -> np.ndarray:
        """Logits f64 [vocab] less the penalties, in place."""

    def note(self, token: int) -> None:
        """The text's next token."""


class Sampler:
    """Draws the tokens of one generation.

    `prompt`: its token ids; `matcher`: what the answer has to be, from its start; `dry`: the penalty of repetitions
    after the prompt. Raises GenerationError for a biased token outside the vocabulary of `vocab_size`.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Iterable[int],
        vocab_size: int,
        matcher: Matcher | None = None,
        dry: RepetitionPenalty | None = None,
    ) -> None:
        for token in sampling.logit_bias:
            if token >= vocab_size:
                raise GenerationError(f"logit_bias has token {token}, outside the vocabulary of {vocab_size}")
        self._sampling, self._generator = sampling, np.random.default_rng(sampling.seed)
        self._matcher, self._dry = matcher, dry
        self._seen, self._made = np.zeros(vocab_size, bool), np.zeros(vocab_size, np.int64)
        self._seen[list(prompt)] = True

    def draw(self, logits: np.ndarray) -> int:
        """The next token of logits f32 [vocab]."""
        if self._matcher is not None:
            logits = self._matcher.masked(logits)
        if self._sampling.changes_logits:
            logits = changed(logits, self._sampling, self._seen, self._made)
        if self._dry is not None:
            logits = self._dry.penalised(logits)
        token = draw(logits, self._sampling, self._generator)
        self.note([token])
        return token

    def note(self, tokens: Iterable[int]) -> None:
        """Tokens of the answer that were drawn elsewhere, or by `draw`."""
        for token in tokens:
            self._seen[token] = True
            self._made[token] += 1
            if self._matcher is not None:
                self._matcher.take(token)
            if self._dry is not None:
                self._dry.note(token)


def changed(logits: np.ndarray, sampling: Sampling, seen: np.ndarray, made: np.ndarray) -> F64Array:
    """Logits f64 [vocab] after penalties and biases; `seen`, bool: tokens of prompt and answer, `made`, whole numbers:
    how often the answer has each.
    """
    values: F64Array = logits.astype(np.float64)
    penalty = sampling.repetition_penalty
    if penalty != 1:
        values[seen] = np.where(values[seen] < 0, values[seen] * penalty, values[seen] / penalty)
    values -= sampling.frequency_penalty * made + sampling.presence_penalty * (made > 0)
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    return values


def probabilities(logits: np.ndarray, sampling: Sampling) -> F64Array:
    """Probabilities f64 [vocab] after temperature, top_k, top_p (the smallest set of likeliest tokens that reaches it),
    min_p and typical_p.
    """
    below_best = logits.astype(np.float64) - logits.max()
    with np.errstate(over="ignore"):  # a tiny temperature divides into -inf, whose probability is 0
        p = np.exp(below_best / sampling.temperature)
    if not sampling.narrows:  # sorting a vocabulary takes as long as a small model's token
        return p / p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order if sampling.top_k is None else order[: sampling.top_k]
    if sampling.top_p is not None:
        total = np.cumsum(p[kept]) / p[kept].sum()
        kept = kept[: int(np.searchsorted(total, sampling.top_p)) + 1]
    if sampling.min_p is not None:
        kept = kept[p[kept] >= sampling.min_p * p[kept[0]]]
    if sampling.typical_p is not None:
        kept = kept[_typical(p[kept] / p[kept].sum(), sampling.typical_p)]
    result = np.zeros_like(p)
    result[kept] = p[kept]
    return np.asarray(result / result.sum())


def _typical(p: F64Array, share: float) -> npt.NDArray[np.bool_]:
    """Which tokens of probabilities p are typical: nearest to the entropy in surprise, until they reach `share`."""
    with np.errstate(divide="ignore"):
        surprise = -np.log(p)
    entropy = p[p > 0] @ surprise[p > 0]
    away = np.abs(surprise - entropy)
    order = np.argsort(away, kind="stable")
    last = min(int(np.count_nonzero(np.cumsum(p[order]) < share)), len(p) - 1)
    return np.asarray(away <= away[order[last]])


def draw(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token: the argmax (lowest id among equals) when greedy, else a draw from `probabilities`."""
    if sampling.greedy:
        return int(np.argmax(logits))
    if sampling.narrows:
        return int(generator.choice(len(logits), p=probabilities(logits, sampling)))
    return _drawn_of_all(logits, sampling.temperature, generator.random())


def _drawn_of_all(logits: np.ndarray, temperature: float, share: float) -> int:
    """The token at which the probabilities, added up, pass `share`: of parts of the vocabulary first, then inside one.

    Adding up all of them takes a third of the time that a small model's token does.
    """
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()) / logits.dtype.type(temperature))
    up_to = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _PART)), dtype=np.float64)
    part = _passing(up_to, share * up_to[-1])
    inside = np.cumsum(weights[part * _PART : (part + 1) * _PART], dtype=np.float64)
    return part * _PART + _passing(inside, share * up_to[-1] - (up_to[part - 1] if part else 0.0))


def _passing(sums: F64Array, value: float) -> int:
    """The first of rising sums that is above a value, or that is the last to rise."""
    return min(int(np.searchsorted(sums, value, side="right")), int(np.searchsorted(sums, sums[-1])))


def field_names() -> list[str]:
    """Names of Sampling's fields, which callers may give one by one."""
    return list(Sampling.__dataclass_fields__)


def of_fields(fields: Mapping[str, Any]) -> Sampling:
    """Sampling of those fields that are given. GenerationError for others."""
    unknown = next((name for name in fields if name not in Sampling.__dataclass_fields__), None)
    if unknown is not None:
        raise GenerationError(f"there is no argument {unknown!r}; of sampling there are {', '.join(field_names())}")
    return Sampling(**fields)
