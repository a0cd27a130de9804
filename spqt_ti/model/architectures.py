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
    `qk_norm`: an RMSNorm over each head of q and k, before RoPE. `activates_up`: the activation is of up as well as of
    gate. `unused`: parts of the names of tensors that checkpoints have beside the model.
    """

    model_type: str  # in config.json
    hf_class: str  # in config.json, under `architectures`
    gguf_name: str  # general.architecture of a GGUF file, and the prefix of its keys
    gguf_permuted: bool = False
    qkv_bias: bool | None = False
    o_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: bool = False
    activates_up: bool = False
    unused: tuple[str, ...] = ()
    window: WindowRule = WindowRule.NONE
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
