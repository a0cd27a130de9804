"""Choosing the next token from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spqt_ti import checks
from spqt_ti.errors import GenerationError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 is greedy; top_k and top_p narrow the choice before drawing.

    Raises GenerationError for values of another type or outside their range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if checks.real_number("temperature", self.temperature) < 0:
            raise GenerationError(f"temperature must be 0 or more, not {self.temperature}")
        checks.whole_number("seed", self.seed, 0)
        if self.top_k is not None:
            checks.whole_number("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < checks.real_number("top_p", self.top_p) <= 1:
            raise GenerationError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities f64 [vocab] after temperature, top_k and top_p (the smallest set of likeliest tokens that reaches
    it).
    """
    below_best = logits.astype(np.float64) - logits.max()
    with np.errstate(over="ignore"):  # a tiny temperature divides into -inf, whose probability is 0
        p = np.exp(below_best / sampling.temperature)
    order = np.argsort(-p, kind="stable")
    kept = order if sampling.top_k is None else order[: sampling.top_k]
    if sampling.top_p is not None:
        total = np.cumsum(p[kept]) / p[kept].sum()
        kept = kept[: int(np.searchsorted(total, sampling.top_p)) + 1]
    result = np.zeros_like(p)
    result[kept] = p[kept]
    return result / result.sum()


def draw(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token: the argmax (lowest id among equals) when greedy, else a draw from `probabilities`."""
    if sampling.greedy:
        return int(np.argmax(logits))
    return int(generator.choice(len(logits), p=probabilities(logits, sampling)))
