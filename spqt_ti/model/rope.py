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
    frequency i by `frequency_factors[i]`: it is how a GGUF file's `rope_freqs.weight` travels when it is not Llama-3's
    formula (one list of factors, no attention factor: the part of LongRoPE that is a plain table).
    """

    rope_type: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    frequency_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise CheckpointError(f"RoPE type {self.rope_type!r} is not supported (only {', '.join(ROPE_TYPES)})")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise CheckpointError(f"rope_scaling.factor is {self.factor}, expected a positive number")
        if self.rope_type == "llama3":
            self._check_llama3()
        if not all(math.isfinite(f) and f > 0 for f in self.frequency_factors):
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
            "attention_factor": 1.0,
            "short_factor": factors,
            "long_factor": list(factors),
            "original_max_position_embeddings": self.original_max_position_embeddings,
        }


def inverse_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None) -> npt.NDArray[np.float64]:
    """f64 [head_dim/2]: the angle by which pair i (elements i, i + head_dim/2) turns from one position to the next."""
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    if scaling.rope_type == "longrope":
        return plain / np.asarray(scaling.frequency_factors, dtype=np.float64)
    return plain / llama3_frequency_factors(plain, scaling)


def llama3_frequency_factors(plain: npt.NDArray[np.float64], scaling: RopeScaling) -> npt.NDArray[np.float64]:
    """f64 [head_dim/2]: what Llama 3.1 divides the unscaled frequencies `plain` by.

    1 for waves much shorter than the original context, `factor` for those longer than it, a blend in between.
    """
    turns = scaling.original_max_position_embeddings * plain / (2 * np.pi)  # full turns within the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = np.clip(blend, 0.0, 1.0)
    return 1.0 / ((1.0 - blend) / scaling.factor + blend)
