"""The model in NumPy, a layer at a time, in the precision of its weights (f32 or f64).

What kernels are compared with, and calibrations that try many masks on the same inputs. Weights may be of any origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import SITES, Site

# Called with (site, inputs [windows, tokens, cols]); returns the inputs that the site's matrix sees.
Mask = Callable[[str, np.ndarray], np.ndarray]
# The same for every layer, which comes first.
LayerMask = Callable[[int, str, np.ndarray], np.ndarray]

# Site -> the projections that are stacked in its matrix: "self_attn.q_proj", ...
PROJECTIONS = {
    site.label: tuple(f"{site.module.partition('.')[0]}.{part}" for part in site.projections) for site in Site
}
_erfc = np.frompyfunc(math.erfc, 1, 1)


@dataclass
class Trace:
    """A run of a layer: `inputs` of each site before masking, the residual stream `middle` after attention, `output`;
    all [windows, tokens, cols].
    """

    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    middle: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    output: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class Layer:
    """Weights of layer `index`, f32 or f64: matrices [rows, cols] and biases by site, norms by role."""

    config: ModelConfig
    index: int
    matrices: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]

    @classmethod
    def of(cls, config: ModelConfig, index: int, weights: Mapping[str, np.ndarray]) -> Layer:
        """From weights by Hugging Face name, [out, in]."""
        prefix = f"model.layers.{index}."

        def stacked(site: str, kind: str) -> np.ndarray:
            return np.concatenate([weights[f"{prefix}{part}.{kind}"] for part in PROJECTIONS[site]])

        return cls(
            config,
            index,
            {site: stacked(site, "weight") for site in SITES},
            {site: stacked(site, "bias") for site in SITES if config.has_bias(PROJECTIONS[site][0])},
            {norm.role: weights[prefix + norm.tensor] for norm in config.norms()},
        )

    def run(self, x: np.ndarray, mask: Mask, since: str = SITES[0], before: Trace | None = None) -> Trace:
        """Run the layer on x [windows, tokens, hidden], the first token of a window at position 0.

        With `since` and `before`, a run whose masks differ only at that site and after it, earlier parts are reused.
        """
        first = SITES.index(since) if before is not None else 0
        trace = Trace(dict(before.inputs), before.middle) if before is not None else Trace()
        if before is None:
            trace.inputs["qkv"] = self._normalised(x, "attention_norm")
        if first == 0:
            trace.inputs["o"] = self._attend(self._linear("qkv", trace, mask))
        if first <= 1:
            trace.middle = x + self._added("o", trace, mask, "after_attention_norm")
            trace.inputs["gate_up"] = self._normalised(trace.middle, "ffn_norm")
        if first <= 2:
            gate, up = np.split(self._linear("gate_up", trace, mask), 2, axis=-1)
            trace.inputs["down"] = self._turned(gated(self.config, gate, up))
        trace.output = trace.middle + self._added("down", trace, mask, "after_ffn_norm")
        return trace

    def _turned(self, x: np.ndarray) -> np.ndarray:
        """The input of down as its matrix wants it."""
        transform = self.config.down_transform(self.index)
        return x if transform is None else transform.apply(x).astype(x.dtype, copy=False)

    def _linear(self, site: str, trace: Trace, mask: Mask) -> np.ndarray:
        y = mask(site, trace.inputs[site]) @ self.matrices[site].T
        return y + self.biases[site] if site in self.biases else y

    def _added(self, site: str, trace: Trace, mask: Mask, norm: str) -> np.ndarray:
        """What the residual stream gets of a site's output."""
        y, factor = self._normalised(self._linear(site, trace, mask), norm), self.config.scales.residual
        return y if factor == 1 else y * y.dtype.type(factor)

    def _normalised(self, x: np.ndarray, role: str) -> np.ndarray:
        """By the norm of a role; x itself where the layer has none."""
        if role not in self.norms:
            return x
        weight = self.norms[role] + x.dtype.type(self.config.architecture.norm_offset)
        return normalised(x, weight, self.config.rms_norm_eps)

    def _attend(self, qkv: np.ndarray) -> np.ndarray:
        """Causal grouped-query attention, [windows, tokens, heads * head_dim]."""
        c = self.config
        windows, tokens, _ = qkv.shape
        ends = np.cumsum([c.num_attention_heads, c.num_key_value_heads])
        q, k, v = (
            part if c.architecture.qk_norm_whole else self._heads(part)
            for part in np.split(qkv, ends * c.head_dim, axis=-1)
        )
        q, k, v = map(self._heads, (self._normalised(q, "q_norm"), self._normalised(k, "k_norm"), v))
        queries_per_kv = c.num_attention_heads // c.num_key_value_heads
        k, v = rotated(c, k, self.index).repeat(queries_per_kv, axis=1), v.repeat(queries_per_kv, axis=1)
        scores = rotated(c, q, self.index) @ k.swapaxes(-1, -2)
        scores /= qkv.dtype.type(1 / c.scales.attention)  # in place from here on: five times as fast
        if c.scales.attention_cap:
            scores[:] = capped(scores, c.scales.attention_cap)
        age = np.arange(tokens)[:, None] - np.arange(tokens)
        scores += np.where((age < 0) | (age >= c.windows()[self.index]), -np.inf, 0).astype(scores.dtype)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        joined = scores @ v
        return joined.transpose(0, 2, 1, 3).reshape(windows, tokens, -1)

    def _heads(self, x: np.ndarray) -> np.ndarray:
        """[windows, tokens, heads * head_dim] -> [windows, heads, tokens, head_dim], which stays as it is."""
        if x.ndim == 4:
            return x
        return x.reshape(*x.shape[:2], -1, self.config.head_dim).transpose(0, 2, 1, 3)


class Reference:
    """A whole model on weights by Hugging Face name, f32 or f64, [out, in], which must fit into memory."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = self.embedding if config.tie_word_embeddings else weights["lm_head.weight"]
        self.layers = [Layer.of(config, index, weights) for index in range(config.num_hidden_layers)]
        self._config, self._norm = config, weights["model.norm.weight"]

    def logits(self, tokens: Sequence[int], since: int = 0, mask: LayerMask | None = None) -> np.ndarray:
        """Logits [len(tokens) - since, vocab] of the tokens from `since` on, the first token at position 0."""
        c = self._config
        x = embedded(c, self.embedding[np.asarray(tokens)])[None]
        for index, layer in enumerate(self.layers):
            x = layer.run(x, _of_layer(mask, index) if mask else unmasked).output
        weight = (self._norm + x.dtype.type(c.architecture.norm_offset)) * x.dtype.type(c.scales.logits)
        logits = normalised(x[0, since:], weight, c.rms_norm_eps) @ self.head.T
        return capped(logits, c.scales.logit_cap) if c.scales.logit_cap else logits


def embedded(config: ModelConfig, rows: np.ndarray) -> np.ndarray:
    """What the first layer gets of rows of the embedding."""
    factor = config.scales.embedding
    return rows if factor == 1 else rows * rows.dtype.type(factor)


def capped(x: np.ndarray, cap: float) -> np.ndarray:
    """cap tanh(x / cap)."""
    c = x.dtype.type(cap)
    return c * np.tanh(x / c)


def normalised(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm over the last axis."""
    squares = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(squares + x.dtype.type(eps)) * weight


def rotated(config: ModelConfig, x: np.ndarray, layer: int) -> np.ndarray:
    """A layer's RoPE of [..., tokens, head_dim], the first token at position 0; Hugging Face's pairs are half of what
    turns apart.
    """
    tokens, half = x.shape[-2], config.rotary_dim // 2
    table = config.rope_tables(tokens)[config.rope_table_of(layer)]
    angles = np.outer(np.arange(tokens), table.angles[:half]).astype(x.dtype)
    low, high, rest = np.split(x, [half, 2 * half], axis=-1)
    lengths = table.lengths[:half].astype(x.dtype)
    cos, sin = np.cos(angles) * lengths, np.sin(angles) * lengths
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], axis=-1)


def gated(config: ModelConfig, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """What down multiplies: the activation of gate, times up or the activation of up."""
    up = activated(config.hidden_act, up, config.hidden_act_param) if config.architecture.activates_up else up
    return activated(config.hidden_act, gate, config.hidden_act_param) * up


def activated(name: str, gate: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """The function between gate and up, by its name in a config; `threshold` of fatrelu. KeyError for another name."""
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "silu": lambda x: x / (1 + np.exp(-np.clip(x, -80, 80))),
        "relu": lambda x: np.maximum(x, 0),
        "relu2": lambda x: np.maximum(x, 0) ** 2,
        "fatrelu": lambda x: np.where(x > threshold, x, x.dtype.type(0)),
        "gelu": lambda x: x * _erfc(x * -(0.5**0.5)).astype(x.dtype) / 2,
        "gelu_pytorch_tanh": lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
    }
    return functions[name](gate)


def unmasked(site: str, inputs: np.ndarray) -> np.ndarray:
    """The Mask of a dense run."""
    del site
    return inputs


def _of_layer(mask: LayerMask, index: int) -> Mask:
    return lambda site, inputs: mask(index, site, inputs)
