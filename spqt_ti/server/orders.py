"""What the engine is asked for, and what it gives back: plain data between the threads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from spqt_ti.generation.constraint import Constraint
from spqt_ti.generation.sampling import Sampling
from spqt_ti.generation.tool_calls import Form, ToolCall


@dataclass(frozen=True)
class Token:
    """A token with its log-probability and those of the likeliest ones; None for the first of a text."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Skip:
    """How weights are skipped: a policy's name, or a level of uniform sparsity; neither: as the server was started."""

    policy: str | None = None
    level: float | None = None


@dataclass(frozen=True)
class Tools:
    """Calls that are read out of an answer: how they are written, of which functions, how many at most.

    `named`: the request names the function, so that a call is no choice of the model's.
    """

    form: Form
    names: tuple[str, ...]
    most: int | None = None
    named: bool = False


@dataclass(frozen=True)
class Order:
    """A request for the engine: `n` answers to each of `prompts` (token ids).

    `logprobs`: how many likeliest tokens come with each; None: no log-probabilities. `echo`: the prompt comes first.
    `continues`: the answer goes on in the prompt's text, and is no message. `heat_map`: see Piece. `constraint`: what
    each answer has to be. `keep`: see generate_tokens. `tools`: calls to look for.
    """

    prompts: list[list[int]]
    max_tokens: int
    sampling: Sampling
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    echo: bool = False
    continues: bool = False
    heat_map: bool = False
    skip: Skip = field(default_factory=Skip)
    constraint: Constraint | None = None
    keep: int | None = None
    tools: Tools | None = None


@dataclass(frozen=True)
class EmbeddingOrder:
    """A request for an embedding of each of `prompts` (token ids)."""

    prompts: list[list[int]]
    pooling: str


@dataclass(frozen=True)
class Embedding:
    """The embedding of prompt `index`, f32 [hidden], of length 1."""

    index: int
    values: np.ndarray


@dataclass(frozen=True)
class Piece:
    """More of the answer `index`: text, and calls of tools. `skipped`: shares of the last token's inputs, [layers][4],
    where asked for.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    skipped: list[list[float]] | None = None
    calls: tuple[ToolCall, ...] = ()


@dataclass
class Usage:
    """Counts of a request. `sparsity`: share of the layers' weights that decoding skipped, over `decoded` tokens."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    completion_tokens: int = 0
    decoded: int = 0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    sparsity: float = 0.0
    bytes_per_token: float = 0.0
    cut_by_time: bool = False
    slides: int = 0
