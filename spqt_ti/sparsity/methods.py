"""The calibration methods by name: each turns a text into a function from a sparsity to a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from spqt_ti.errors import PolicyError
from spqt_ti.model.container import Container
from spqt_ti.model.llama import Llama
from spqt_ti.model.tokenizer import Tokenizer
from spqt_ti.sparsity import teal, uniform, wina
from spqt_ti.sparsity.policy import SparsityPolicy
from spqt_ti.texts import paragraph_hashes

MIN_TOKENS = 256  # below that a quantile of a site says little

PolicyMaker = Callable[[float], SparsityPolicy]


def _uniform(llama: Llama, container: Container, text: str, tokens: Sequence[int]) -> PolicyMaker:
    return uniform.calibrate(llama, container.fingerprint, text, tokens).policy


def _wina(llama: Llama, container: Container, text: str, tokens: Sequence[int]) -> PolicyMaker:
    return wina.calibrate(llama, container, text, tokens).policy


def _teal(llama: Llama, container: Container, text: str, tokens: Sequence[int]) -> PolicyMaker:
    return teal.calibrate(llama, container, text, tokens).policy


METHODS: dict[str, Callable[[Llama, Container, str, Sequence[int]], PolicyMaker]] = {
    "uniform": _uniform,
    "teal": _teal,
    "wina": _wina,
}


def calibrate(
    method: str, llama: Llama, container: Container, tokenizer: Tokenizer, text: str, most: int
) -> PolicyMaker:
    """Calibrate on the first `most` tokens of `text`; its paragraphs' hashes are kept in every policy.

    Raises PolicyError for an unknown method and for a text (or `most`) of fewer than 256 tokens.
    """
    if method not in METHODS:
        raise PolicyError(f"unknown method {method!r}; there are: {', '.join(METHODS)}")
    tokens = tokenizer.encode(text)[: max(most, 0)]
    if len(tokens) < MIN_TOKENS:
        raise PolicyError(f"{len(tokens)} tokens to calibrate on, expected {MIN_TOKENS} or more")
    make = METHODS[method](llama, container, text, tokens)
    hashes = paragraph_hashes(text)

    def policy(sparsity: float) -> SparsityPolicy:
        made = make(sparsity)
        return dataclasses.replace(made, calibration={**made.calibration, "paragraphs": hashes})

    return policy
