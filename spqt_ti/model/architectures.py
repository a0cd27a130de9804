"""The architectures that run, a row each: what their `config.json` does not say, with transformers' own defaults.

The decoder is one: RMSNorm, grouped-query attention with RoPE, a gated feed-forward network. A row says in which of its
flags an architecture differs; readers of models and kernels ask the row and never the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class WindowRule(Enum):
    """Which layers attend to no more than the last `sliding_window` positions."""

    NONE = "none"  # the architecture knows no window
    EVERY_LAYER = "every layer"  # all of them, unless sliding_window is null
    BY_FLAG = "by flag"  # with use_sliding_window those of layer_types, else those from max_window_layers on
    BY_LAYER = "by layer"  # those of layer_types, else all but every n-th (`Architecture.window_pattern`)


class NormRule(Enum):
    """Where a layer's two halves (attention, feed-forward network) are normalised."""

    BEFORE = "before"  # their inputs
    AFTER = "after"  # what they add to the residual stream
    BOTH = "both"


# transformers' values for fields that a config.json leaves out. Explicit null is another thing than absent.
_SHARED_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
_QWEN_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}


@dataclass(frozen=True)
class Architecture:
    """A row. The three biases: whether the matrices have them; None where the config's own flag says so
    (`attention_bias` for q, k, v and o, `mlp_bias` for the rest).

    `gguf_name` is empty where no GGUF file of the architecture is known. `gguf_permuted`: GGUF files have the rows of q
    and k in the order of ggml's RoPE for Llama (pairs 2i, 2i + 1).
    `qk_norm`: an RMSNorm over each head of q and k, before RoPE; with `qk_norm_whole` over all heads together.
    `activates_up`: the activation is of up as well as of gate. `unused`: parts of the names of tensors that checkpoints
    have beside the model. `fused`: checkpoints have q, k, v and gate, up stacked. `norm_offset`: is added to weights of
    norms.

    `multipliers`: transformers' defaults of the numbers that `model/scales.py` knows, by name; `scaled_embedding`: by
    sqrt(hidden). `local_rope`: layers with a window have a RoPE base of their own. `skips_rope`: some layers have no
    RoPE (no_rope_layers). `partial_rope`: RoPE may turn a part of each head.
    """

    model_type: str  # in config.json
    hf_class: str  # in config.json, under `architectures`
    gguf_name: str  # general.architecture of a GGUF file, and the prefix of its keys
    gguf_permuted: bool = False
    qkv_bias: bool | None = False
    o_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    norms: NormRule = NormRule.BEFORE
    norm_offset: float = 0.0
    activates_up: bool = False
    activation_key: str = "hidden_act"
    unused: tuple[str, ...] = ()
    fused: bool = False
    window: WindowRule = WindowRule.NONE
    window_pattern: int = 0
    local_rope: bool = False
    skips_rope: bool = False
    partial_rope: bool = False
    scaled_embedding: bool = False
    multipliers: Mapping[str, float | None] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def default(self, name: str) -> Any:
        """transformers' value of a field that a config.json leaves out; None where it has no own."""
        return self.defaults.get(name, _SHARED_DEFAULTS.get(name))


_LLAMA_DEFAULTS = {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}
_MISTRAL_DEFAULTS = {
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA: dict[str, Any] = {
    "norms": NormRule.BOTH, "norm_offset": 1.0, "activation_key": "hidden_activation", "window": WindowRule.BY_LAYER,
    "scaled_embedding": True,
}  # fmt: skip
_GEMMA_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh", "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
    "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip

_ROWS = (
    Architecture(
        "llama", "LlamaForCausalLM", "llama", gguf_permuted=True, qkv_bias=None, o_bias=None, mlp_bias=None,
        defaults=_LLAMA_DEFAULTS,
    ),
    Architecture(  # ProSparse's Llama: with hidden_act fatrelu
        "sparsellama", "SparseLlamaForCausalLM", "", qkv_bias=None, o_bias=None, mlp_bias=None,
        defaults=_LLAMA_DEFAULTS,
    ),
    Architecture(
        "mistral", "MistralForCausalLM", "llama", gguf_permuted=True, window=WindowRule.EVERY_LAYER,
        defaults=_MISTRAL_DEFAULTS,
    ),
    Architecture(  # Bamboo and TurboSparse-Mistral: dReLU; the latter brings trained predictors of its neurons
        "bamboo", "BambooForCausalLM", "", activates_up=True, unused=(".mlp.predictor.",),
        window=WindowRule.EVERY_LAYER, defaults=_MISTRAL_DEFAULTS,
    ),
    Architecture(
        "qwen2", "Qwen2ForCausalLM", "qwen2", qkv_bias=True, window=WindowRule.BY_FLAG, defaults=_QWEN_DEFAULTS
    ),
    Architecture(
        "qwen3", "Qwen3ForCausalLM", "qwen3", qkv_bias=None, o_bias=None, qk_norm=True, window=WindowRule.BY_FLAG,
        defaults=_QWEN_DEFAULTS | {"head_dim": 128},
    ),
    Architecture(
        "granite", "GraniteForCausalLM", "granite", gguf_permuted=True, qkv_bias=None, o_bias=None, mlp_bias=None,
        multipliers={
            "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0,
        },
        defaults=_LLAMA_DEFAULTS,
    ),
    Architecture(
        "smollm3", "SmolLM3ForCausalLM", "smollm3", gguf_permuted=True, qkv_bias=None, o_bias=None, mlp_bias=None,
        skips_rope=True,
        defaults={
            "max_position_embeddings": 32768, "num_key_value_heads": 4, "rope_theta": 2e6, "bos_token_id": 128000,
            "eos_token_id": 128001, "tie_word_embeddings": True,
        },
    ),
    Architecture(  # of MiniCPM's own code: transformers does not have it
        "minicpm", "MiniCPMForCausalLM", "minicpm", gguf_permuted=True,
        multipliers={"scale_emb": 1.0, "scale_depth": 1.0, "dim_model_base": 1.0},
        defaults=_LLAMA_DEFAULTS | {"tie_word_embeddings": True},
    ),
    Architecture(
        "olmo2", "Olmo2ForCausalLM", "olmo2", qkv_bias=None, o_bias=None, qk_norm=True, qk_norm_whole=True,
        norms=NormRule.AFTER,
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": 50279},
    ),
    Architecture(  # Phi-3, 3.5 and 4, their mini sizes included
        "phi3", "Phi3ForCausalLM", "phi3", fused=True, partial_rope=True, window=WindowRule.EVERY_LAYER,
        defaults={
            "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
            "bos_token_id": 1, "eos_token_id": 32000,
        },
    ),
    Architecture(
        "gemma2", "Gemma2ForCausalLM", "gemma2", qkv_bias=None, o_bias=None, window_pattern=2,
        multipliers={"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        defaults=_GEMMA_DEFAULTS | {"max_position_embeddings": 8192}, **_GEMMA,
    ),
    Architecture(  # its text models; of those with images the language model is another class
        "gemma3_text", "Gemma3ForCausalLM", "gemma3", qkv_bias=None, o_bias=None, qk_norm=True, window_pattern=6,
        local_rope=True,
        multipliers={"query_pre_attn_scalar": 256, "final_logit_softcapping": None},  # transformers reads no other cap
        defaults=_GEMMA_DEFAULTS
        | {"max_position_embeddings": 131072, "rope_theta": 1e6, "rope_local_base_freq": 10000.0}, **_GEMMA,
    ),
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in _ROWS}


def by_hf_class(name: str) -> Architecture | None:
    """The row of a class of transformers."""
    return next((row for row in _ROWS if row.hf_class == name), None)


def by_gguf_name(name: str, *, window: bool) -> Architecture | None:
    """The row of a GGUF file's architecture; of several, the one that knows a sliding window where the file has one."""
    rows = [row for row in _ROWS if row.gguf_name and row.gguf_name == name]
    knowing = [row for row in rows if row.window is not WindowRule.NONE]
    return next(iter(knowing if window and knowing else rows), None)
