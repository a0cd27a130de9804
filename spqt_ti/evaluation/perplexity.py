"""Perplexity of a text, and how far sparse decoding moves the next token's distribution away from the dense one.

The text is cut into windows of the context length and the second half of each is scored, as llama.cpp does. Sparse rows
come from masked prefill: many tokens at once, each (those of the first half too) with the inputs that decoding would
see. Other models than the runner's are scored by `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.errors import GenerationError
from spqt_ti.model.runner import Llama
from spqt_ti.progress import progress
from spqt_ti.sparsity.active_inputs import ActiveInputs
from spqt_ti.sparsity.policy import SparsityPolicy, be_dense
from spqt_ti.sparsity.search.divergence import divergence, log_softmax

MIN_CONTEXT = 8

# A window -> logits f32 [n, vocab] of its second half but for the last token, which predicts nothing.
Scorer = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One line of the table. `perplexity_se`: standard error over tokens; `kl_mean`, `kl_p99`: KL(dense || sparse) in
    nats; `top1`: share of tokens whose likeliest successor is the dense one's; `realised_sparsity`: share of the
    layers' weights that were skipped; `tokens`: scored ones.
    """

    sparsity: float
    perplexity: float
    perplexity_se: float
    kl_mean: float
    kl_p99: float
    top1: float
    realised_sparsity: float
    tokens: int


@dataclass
class Scores:
    """What one policy gave on every scored token (f64 [n]), window after window; compare policies pairwise on it.

    `active`: the inputs that all tokens of the windows read (None: of a model that skips nothing).
    """

    nll: list[np.ndarray] = field(default_factory=list)
    kl: list[np.ndarray] = field(default_factory=list)
    same: list[np.ndarray] = field(default_factory=list)
    active: ActiveInputs | None = None

    def row(self, sparsity: float) -> Row:
        """Summed up."""
        nll, kl = np.concatenate(self.nll), np.concatenate(self.kl)
        perplexity = float(np.exp(nll.mean()))
        return Row(
            sparsity,
            perplexity,
            perplexity * float(nll.std(ddof=1)) / len(nll) ** 0.5,
            float(kl.mean()),
            float(np.quantile(kl, 0.99)),
            float(np.concatenate(self.same).mean()),
            self.active.realised_sparsity if self.active else 0.0,
            len(nll),
        )


def windows(
    tokens: Sequence[int], context: int, most: int | None = None, bos: Sequence[int] = ()
) -> list[Sequence[int]]:
    """Whole windows of `context` tokens, the first `most` of them.

    `bos`: what the tokenizer puts in front of a text (`Tokenizer.bos`); it replaces the first tokens of every window,
    as in llama.cpp. Raises GenerationError where there is no window.
    """
    if context < MIN_CONTEXT:
        raise GenerationError(f"the context must be {MIN_CONTEXT} or more, not {context}")
    found = [tokens[i : i + context] for i in range(0, len(tokens) - context + 1, context)][:most]
    if not found:
        raise GenerationError(f"the text has {len(tokens)} tokens, fewer than one window of {context}")
    return [[*bos, *window[len(bos) :]] for window in found]


def evaluate(llama: Llama, parts: Sequence[Sequence[int]], policies: Sequence[SparsityPolicy | None]) -> list[Scores]:
    """Scores of every policy (None: dense) on the windows `parts`; the model is dense afterwards.

    All of a policy's thresholds count, also where decoding would run a matrix densely because that is faster.
    """
    scores = [Scores(active=ActiveInputs(llama)) for _ in policies]
    llama.reset()
    llama.warm_up_prefill()
    for window in progress(parts, desc="evaluate", unit="windows"):
        be_dense(llama)
        dense = log_softmax(second_half(llama, window, None))
        for policy, score in zip(policies, scores, strict=True):
            be_dense(llama)
            if policy is not None:
                policy.apply(llama)
            score_window(score, window, dense, log_softmax(second_half(llama, window, score.active)))
    be_dense(llama)
    llama.reset()
    return scores


def second_half(llama: Llama, window: Sequence[int], active: ActiveInputs | None) -> np.ndarray:
    """Logits f32 [n, vocab] that predict the second half, as llama.cpp counts: the last token predicts nothing. With
    `active` masked, and what is read is counted there.
    """
    half, masked = len(window) // 2, active is not None
    llama.reset()
    llama.prefill(window[:half], "none", masked, active)
    return llama.prefill(window[half:-1], "all", masked, active)


def compare(parts: Sequence[Sequence[int]], reference: Scorer, others: Sequence[Scorer]) -> list[Scores]:
    """Scores of `others` on the windows `parts`; their KL divergence and top 1 are from and with `reference`."""
    scores = [Scores() for _ in others]
    for window in progress(parts, desc="evaluate", unit="windows"):
        dense = log_softmax(reference(window))
        for other, score in zip(others, scores, strict=True):
            score_window(score, window, dense, log_softmax(other(window)))
    return scores


def score_window(score: Scores, window: Sequence[int], dense: np.ndarray, sparse: np.ndarray) -> None:
    """Add a window's tokens to `score`, by log-probabilities f32 [n, vocab] of its second half."""
    wanted = np.asarray(window[len(window) // 2 + 1 :])
    score.nll.append(-sparse[np.arange(len(wanted)), wanted].astype(np.float64))
    score.kl.append(divergence(dense, sparse))
    score.same.append(dense.argmax(-1) == sparse.argmax(-1))


def mean_and_error(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean of a score's tokens and its standard error over windows (tokens of a window are not independent)."""
    means = np.array([v.mean() for v in values])
    return float(means.mean()), float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else float("nan")
