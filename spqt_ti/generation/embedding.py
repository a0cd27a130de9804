"""Embeddings: one vector for a text, pooled from the hidden states of its tokens after the final norm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spqt_ti import checks
from spqt_ti.errors import GenerationError
from spqt_ti.model.engine import CHUNK, Tokens
from spqt_ti.model.runner import Llama

POOLINGS = ("mean", "last")  # over all tokens, or the last one's alone


def checked(pooling: str) -> str:
    """The word, if it is one of POOLINGS. Raises GenerationError."""
    if pooling not in POOLINGS:
        raise GenerationError(f"pooling is {' or '.join(POOLINGS)}, not {pooling!r}")
    return pooling


def embedding(
    llama: Llama,
    tokens: Tokens,
    pooling: str = "mean",
    *,
    normalize: bool = True,
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Embedding f32 [hidden] of a sequence of its own; with `normalize` its Euclidean length is 1.

    Tokens run densely, whatever the policy. `between` is called before each chunk, and may raise. Raises
    GenerationError for no tokens, ids outside the vocabulary and more tokens than the context.
    """
    checked(pooling)
    ids = checks.token_ids(tokens, llama.config.vocab_size)
    llama.check_length(len(ids))
    llama.reset()
    total = np.zeros(llama.config.hidden_size, np.float64)
    for begin in range(0, len(ids), CHUNK):
        between()
        states = llama.final_states(ids[begin : begin + CHUNK]).astype(np.float64)
        total = total + states.sum(axis=0) if pooling == "mean" else states[-1]
    pooled = total / len(ids) if pooling == "mean" else total
    length = float(np.linalg.norm(pooled)) if normalize else 1.0
    return (pooled / (length or 1.0)).astype(np.float32)
