"""What each metadata key of a GGUF file means to this package: applied, harmless, or refused by name.

Names and defaults are llama.cpp's (`llama-arch.cpp`, `llama-model.cpp`). A key that changes the computation there and
that this package does not apply must hold the value that changes nothing; keys nobody knows are warned of.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from spqt_ti.errors import CheckpointError
from spqt_ti.model.architectures import Architecture

_LOG = logging.getLogger(__name__)
NO_TOKEN = 0xFFFFFFFF  # -1 in the unsigned field of a token id

# Keys under the architecture's name that readers of this package apply, or check themselves.
_APPLIED = {
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "attention.value_length", "block_count", "context_length", "embedding_length",
    "expert_count", "feed_forward_length", "rope.dimension_count", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.factor", "rope.scaling.type", "vocab_size",
}  # fmt: skip
# Keys that change the computation in llama.cpp -> values with which they do not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "use_parallel_residual": (False,),
}
# Keys that say nothing about the computation, or only about what is refused elsewhere (experts, yarn, windows).
_HARMLESS = re.compile(
    r"attention\.(layer_norm_epsilon|sliding_window_pattern|temperature_length)|expert_\w+|interleave_moe_layer_step"
    r"|leading_dense_block_count|pooling_type|rope\.freq_base_swa|rope\.scaling\.(finetuned|original_context_length"
    r"|yarn_\w+)|tensor_data_layout"
)
_GENERAL_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "tokenizer.ggml.add_sep_token": (False,),
}


# Names of config.json -> keys, by model type.
_MULTIPLIERS: dict[str, dict[str, str]] = {
    "granite": {
        "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale",
    },
    "minicpm": {"scale_emb": "embedding_scale", "scale_depth": "residual_scale", "dim_model_base": "logit_scale"},
    "gemma2": {
        "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma3_text": {"final_logit_softcapping": "final_logit_softcapping"},
}  # fmt: skip
# Layers of the 27 billion parameters of Gemma 2 and 3, whose scores are divided by sqrt(hidden / heads).
_WIDE_SCORES = {"gemma2": 46, "gemma3_text": 62}


class ArchitectureMetadata:
    """The keys under an architecture's name (`llama.*`), with types checked."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self.metadata, self.name = metadata, name

    def key(self, key: str) -> str:
        """The whole name of a key, for messages too."""
        return f"{self.name}.{key}"

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number; a list, one entry per layer, counts as one number where all entries are the same."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu" and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, np.ndarray):
            raise CheckpointError(
                f"metadata key {self.name}.{key} differs between layers ({value[:8].tolist()} ..): not supported"
            )
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"metadata key {self.name}.{key} is {value!r:.80}, expected one whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"metadata key {self.name}.{key} is {value!r:.80}, expected a number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise CheckpointError(f"metadata key {self.name}.{key} is {value!r:.80}, expected text")
        return value

    def epsilon(self) -> float:
        """The f32 epsilon as the decimal that was meant: 1e-05 rather than 9.999999747378752e-06."""
        return float(np.format_float_scientific(np.float32(self.real("attention.layer_norm_rms_epsilon")), unique=True))

    def check_known(self, head_dim: int, row: Architecture) -> None:
        """CheckpointError for a key that changes the computation and is not applied; a warning for an unknown one."""
        for full in self.metadata:
            prefix, _, key = full.partition(".")
            if prefix != self.name or key in _APPLIED or key in _MULTIPLIERS.get(row.model_type, {}).values():
                continue
            if key == "rope.scaling.attn_factor" and row.partial_rope:
                continue
            if key in _NEUTRAL:
                self._check_neutral(full, _NEUTRAL[key])
            elif key == "attention.scale":
                self._check_scale(full, head_dim)
            elif key == "rope.dimension_sections":
                self._check_sections(full)
            elif not _HARMLESS.fullmatch(key):
                _LOG.warning("metadata key %s is not known to this package and has no effect", full[:120])
        for full, neutral in _GENERAL_NEUTRAL.items():
            if full in self.metadata:
                self._check_neutral(full, neutral)

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.name}.{key}", default)
        if value is None:
            raise CheckpointError(f"metadata key {self.name}.{key} is missing")
        return value

    def _check_neutral(self, full: str, neutral: tuple[Any, ...]) -> None:
        value = self.metadata[full]
        if isinstance(value, np.ndarray) or value not in neutral:
            raise CheckpointError(f"metadata key {full} is {value!r:.80}, which is not supported (only {neutral[0]!r})")

    def _check_scale(self, full: str, head_dim: int) -> None:
        scale = self.real("attention.scale")
        if scale and not np.isclose(scale, head_dim**-0.5, rtol=1e-5):
            raise CheckpointError(f"metadata key {full} is {scale}, which is not supported (only 1 / sqrt({head_dim}))")

    def _check_sections(self, full: str) -> None:
        if np.any(self.metadata[full]):
            raise CheckpointError(f"metadata key {full}: RoPE in sections (of images) is not supported")


def multipliers(
    meta: ArchitectureMetadata, row: Architecture, sizes: tuple[int, int, int, int]
) -> tuple[tuple[str, float | None], ...]:
    """The row's multipliers, by config.json's names and meaning; `sizes`: hidden, heads, head size, layers. As in
    llama.cpp 0 stands for one that is not there; a MiniCPM that lacks one has those of the 2 billion parameters.
    """
    hidden, heads, head_dim, layers = sizes
    found: dict[str, float | None] = {}
    for name, key in _MULTIPLIERS.get(row.model_type, {}).items():
        value = meta.real(key, 0.0)
        if row.model_type == "minicpm":
            # Files have residual_scale = scale_depth / sqrt(layers) and logit_scale = hidden / dim_model_base.
            if name == "scale_depth":
                value = value * layers**0.5 or 1.4
            elif name == "dim_model_base":
                value = hidden / value if value else 256.0
            else:
                value = value or 12.0
        elif not value:
            continue
        found[name] = value
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        cap = _MULTIPLIERS.get(row.model_type, {}).get(name)
        if name in row.multipliers and name not in found and cap and meta.key(cap) in meta.metadata:
            found[name] = None
    if row.model_type == "granite":
        found.setdefault("attention_multiplier", head_dim**-0.5)
    if "query_pre_attn_scalar" in row.multipliers:
        wide = layers == _WIDE_SCORES[row.model_type]
        found["query_pre_attn_scalar"] = hidden / heads if wide else float(head_dim)
    return tuple(found.items())


def special_token(metadata: Mapping[str, Any], name: str) -> int | None:
    """Id under `tokenizer.ggml.NAME_token_id`; None where it is absent or -1."""
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"tokenizer.ggml.{name}_token_id is {value!r:.80}: token ids are whole numbers")
    return None if value in (-1, NO_TOKEN) else value
