"""Numbers by which an architecture multiplies what others leave alone, by the names that its config.json gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from spqt_ti.errors import CheckpointError

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # the only ones that may be null


@dataclass(frozen=True)
class Scales:
    """Factors of the embedding, of what a layer's two halves add to the residual stream, of attention's scores and of
    logits. Caps c, 0 for none: scores and logits become c tanh(x / c).
    """

    embedding: float
    residual: float
    attention: float
    logits: float
    attention_cap: float
    logit_cap: float

    @classmethod
    def of(
        cls, named: Mapping[str, float | None], hidden: int, layers: int, head_dim: int, *, by_width: bool
    ) -> Scales:
        """From the numbers in a config; `by_width`: embeddings are scaled by sqrt(hidden)."""

        def number(name: str, default: float) -> float:
            value = named.get(name)
            return default if value is None else value

        embedding = number("embedding_multiplier", number("scale_emb", hidden**0.5 if by_width else 1.0))
        depth = named.get("scale_depth")
        residual = number("residual_multiplier", 1.0 if depth is None else depth / layers**0.5)
        attention = number("attention_multiplier", number("query_pre_attn_scalar", head_dim) ** -0.5)
        base = named.get("dim_model_base")
        logits = 1.0 / number("logits_scaling", 1.0 if base is None else hidden / base)
        return cls(embedding, residual, attention, logits, *(number(name, 0.0) for name in CAPS))


def check(named: Mapping[str, float | None]) -> None:
    """CheckpointError for a number that is not positive; caps may be null."""
    for name, value in named.items():
        if value is None and name in CAPS:
            continue
        if value is None or not (math.isfinite(value) and value > 0):
            raise CheckpointError(f"{name} is {value}, expected a positive number")


def spelt(named: tuple[tuple[str, float | None], ...]) -> dict[str, float | int | None]:
    """As transformers wants them in a config.json: query_pre_attn_scalar as a whole number."""
    whole = {name: int(value) for name, value in named if value and name == "query_pre_attn_scalar" and value % 1 == 0}
    return dict(named) | whole
