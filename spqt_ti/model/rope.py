"""Rotary position embedding: the frequencies, and how a model scales them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import CheckpointError

ROPE_TYPES = ("linear", "llama3", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies differ from `theta ** (-2 i / head_dim)`.

    `linear` uses `factor`; `llama3` uses `factor`, both frequency factors and the original context. `longrope` divides
    frequency i by `frequency_factors[i]`, or, in a context beyond the original one, by `long_factors[i]` where there
    are such; cosines and sines are multiplied by `attention_factor`. A GGUF file's `rope_freqs.weight` travels as one
    list of factors when it is not Llama-3's formula.
    """

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    frequency_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise CheckpointError(f"RoPE type {self.rope_type!r} is not supported (only {', '.join(ROPE_TYPES)})")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise CheckpointError(f"rope_scaling.factor is {self.factor}, expected a positive number")
        if self.rope_type == "llama3":
            self._check_llama3()
        if self.long_factors == self.frequency_factors:  # one spelling of one model
            object.__setattr__(self, "long_factors", ())
        if self.long_factors and len(self.long_factors) != len(self.frequency_factors):
            raise CheckpointError("rope_scaling has short_factor and long_factor of different lengths")
        if not (math.isfinite(self.attention_factor) and self.attention_factor > 0):
            raise CheckpointError(
                f"rope_scaling.attention_factor is {self.attention_factor}, expected a positive number"
            )
        if not all(math.isfinite(f) and f > 0 for f in (*self.frequency_factors, *self.long_factors)):
            raise CheckpointError("rope_scaling has frequency factors that are not positive numbers")

    def _check_llama3(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise CheckpointError(
                f"rope_scaling needs 0 < low_freq_factor < high_freq_factor, got {self.low_freq_factor} "
                f"and {self.high_freq_factor}"
            )
        if self.original_max_position_embeddings <= 0:
            raise CheckpointError(
                "rope_scaling.original_max_position_embeddings is "
                f"{self.original_max_position_embeddings}, expected a positive number"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields of this type as Hugging Face spells them."""
        if self.rope_type == "linear":
            return {"rope_type": "linear", "factor": self.factor}
        if self.rope_type == "llama3":
            return {
                "rope_type": "llama3",
                "factor": self.factor,
                "low_freq_factor": self.low_freq_factor,
                "high_freq_factor": self.high_freq_factor,
                "original_max_position_embeddings": self.original_max_position_embeddings,
            }
        factors = list(self.frequency_factors)
        return {
            "rope_type": "longrope",
            "factor": self.factor,
            "attention_factor": self.attention_factor,
            "short_factor": factors,
            "long_factor": list(self.long_factors or factors),
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }


def inverse_frequencies(
    theta: float, head_dim: int, scaling: RopeScaling | None, context: int = 0
) -> npt.NDArray[np.float64]:
    """f64 [head_dim/2]: the angle by which pair i (elements i, i + head_dim/2) turns from one position to the next, in
    a context of so many positions. Of a head that turns in part, `head_dim` is the part.
    """
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    if scaling.rope_type == "longrope":
        long = scaling.long_factors and context > scaling.original_max_position_embeddings
        return plain / np.asarray(scaling.long_factors if long else scaling.frequency_factors, dtype=np.float64)
    return plain / llama3_frequency_factors(plain, scaling)


@dataclass(frozen=True)
class RopeTable:
    """Of pair i of a head: the angle from one position to the next, and the length of (cos, sin); f64 [head_dim/2].

    The pairs that turn are the first ones, entries (i, i + half) with `half` the number of them; the others, whose
    angle is 0 and length 1, are the entries behind in any order.
    """

    angles: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.float64]

    @classmethod
    def of(cls, theta: float, rotary: int, head_dim: int, scaling: RopeScaling | None, context: int) -> RopeTable:
        """Of the first `rotary` entries of heads, 0 for none."""
        rest = head_dim // 2 - rotary // 2
        angles = inverse_frequencies(theta, rotary, scaling, context) if rotary else np.zeros(0)
        lengths = np.full(rotary // 2, scaling.attention_factor if scaling else 1.0)
        return cls(np.pad(angles, (0, rest)), np.pad(lengths, (0, rest), constant_values=1.0))


def llama3_frequency_factors(plain: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """f64 [head_dim/2]: what Llama 3.1 divides the unscaled frequencies `plain` by.

    1 for waves much shorter than the original context, `factor` for those longer than it, a blend in between.
    """
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)  # full turns within the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling.factor + blend)
