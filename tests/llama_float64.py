"""A Llama forward pass in NumPy float64, written for clarity: the reference that the runner's logits are compared with.

`weights` maps Hugging Face tensor names to arrays [out, in]. `mask` may zero inputs of the decode matrices, as sparse
decoding does.
"""

from collections.abc import Callable, Mapping

import numpy as np

from spqt_ti.model.config import ModelConfig, rope_inverse_frequencies

Mask = Callable[[int, str, np.ndarray], np.ndarray]


def forward(
    config: ModelConfig, weights: Mapping[str, np.ndarray], tokens: list[int], mask: Mask | None = None
) -> np.ndarray:
    """Logits f64 [T, vocab]; `mask(layer, site, x [T, K])` returns the inputs that a site's matrices see."""
    mask = mask or (lambda layer, site, x: x)

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        y = x @ weights[f"{name}.weight"].astype(np.float64).T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * weights[name]

    x = weights["model.embed_tokens.weight"][tokens].astype(np.float64)
    angles = np.outer(np.arange(len(tokens)), rope_inverse_frequencies(config))
    for i in range(config.num_hidden_layers):
        block = f"model.layers.{i}"
        h = mask(i, "qkv", norm(f"{block}.input_layernorm.weight", x))
        q, k, v = (linear(f"{block}.self_attn.{p}_proj", h) for p in "qkv")
        a = attention(config, q, k, v, angles)
        x = x + linear(f"{block}.self_attn.o_proj", mask(i, "o", a))
        h = mask(i, "gate_up", norm(f"{block}.post_attention_layernorm.weight", x))
        g = linear(f"{block}.mlp.gate_proj", h)
        h = g / (1 + np.exp(-g)) * linear(f"{block}.mlp.up_proj", h)
        x = x + linear(f"{block}.mlp.down_proj", mask(i, "down", h))
    x = norm("model.norm.weight", x)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return x @ weights[head].astype(np.float64).T


def attention(config: ModelConfig, q: np.ndarray, k: np.ndarray, v: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Causal grouped-query attention, [T, heads * head_dim]."""
    tokens, dim = len(q), config.head_dim

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(tokens, -1, dim).transpose(1, 0, 2)

    def rotate(x: np.ndarray) -> np.ndarray:
        low, high = x[..., : dim // 2], x[..., dim // 2 :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    group = config.num_attention_heads // config.num_key_value_heads
    q, k, v = rotate(heads(q)), rotate(heads(k)).repeat(group, axis=0), heads(v).repeat(group, axis=0)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(dim)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return (p @ v).transpose(1, 0, 2).reshape(tokens, -1)
