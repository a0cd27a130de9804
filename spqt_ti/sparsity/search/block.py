"""One block of the model in f32 NumPy, on dequantised weights, for calibrations that try many masks on the same inputs.

Matrices of a block's size and a few hundred tokens are BLAS's case, and a change at one site recomputes only what
follows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from spqt_ti.container.container import Container
from spqt_ti.model.config import ModelConfig, rope_inverse_frequencies
from spqt_ti.model.sites import MODULES, SITES, matrix_shapes

LARGE = 16 << 20  # weights of a matrix from which on several BLAS threads work on it

# Called with (site, inputs f32 [windows, tokens, cols]); returns the inputs that the site's matrix sees.
Mask = Callable[[str, np.ndarray], np.ndarray]


@dataclass
class Trace:
    """A run of a block: `inputs` of each site before masking, the residual stream `middle` after attention, `output`;
    all f32 [windows, tokens, cols].
    """

    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    middle: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    output: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class Block:
    """Weights of a block, f32: matrices [rows, cols] and biases by site, both norms."""

    config: ModelConfig
    matrices: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]
    attention_norm: np.ndarray
    ffn_norm: np.ndarray

    @classmethod
    def load(cls, container: Container, layer: int) -> Block:
        """Dequantise block `layer`."""
        prefix, names = f"model.layers.{layer}.", set(container.names())
        return cls(
            container.config,
            {site: container.dequantize(prefix + module) for site, module in MODULES.items()},
            {
                site: container.read(f"{prefix}{module}.bias")
                for site, module in MODULES.items()
                if f"{prefix}{module}.bias" in names
            },
            container.read(f"{prefix}input_layernorm.weight"),
            container.read(f"{prefix}post_attention_layernorm.weight"),
        )

    def run(self, x: np.ndarray, mask: Mask, since: str = SITES[0], before: Trace | None = None) -> Trace:
        """Run the block on x f32 [windows, tokens, hidden], the first token of a window at position 0.

        With `since` and `before`, a run whose masks differ only at that site and after it, earlier parts are reused.
        """
        first = SITES.index(since) if before is not None else 0
        trace = Trace(dict(before.inputs), before.middle) if before is not None else Trace()
        if before is None:
            trace.inputs["qkv"] = self._normalised(x, self.attention_norm)
        if first == 0:
            trace.inputs["o"] = self._attend(self._linear("qkv", trace, mask))
        if first <= 1:
            trace.middle = x + self._linear("o", trace, mask)
            trace.inputs["gate_up"] = self._normalised(trace.middle, self.ffn_norm)
        if first <= 2:
            gate, up = np.split(self._linear("gate_up", trace, mask), 2, axis=-1)
            trace.inputs["down"] = gate / (1 + np.exp(-np.clip(gate, -80, 80))) * up
        trace.output = trace.middle + self._linear("down", trace, mask)
        return trace

    def _linear(self, site: str, trace: Trace, mask: Mask) -> np.ndarray:
        y = mask(site, trace.inputs[site]) @ self.matrices[site].T
        return y + self.biases[site] if site in self.biases else y

    def _normalised(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        squares = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(squares + np.float32(self.config.rms_norm_eps)) * weight

    def _attend(self, qkv: np.ndarray) -> np.ndarray:
        """Causal grouped-query attention, [windows, tokens, heads * head_dim]."""
        c = self.config
        windows, tokens, _ = qkv.shape
        heads = qkv.reshape(windows, tokens, -1, c.head_dim).transpose(0, 2, 1, 3)
        q, k, v = np.split(heads, [c.num_attention_heads, c.num_attention_heads + c.num_key_value_heads], axis=1)
        group = c.num_attention_heads // c.num_key_value_heads
        k, v = self._rotated(k).repeat(group, axis=1), v.repeat(group, axis=1)
        scores = self._rotated(q) @ k.swapaxes(-1, -2) / np.float32(c.head_dim**0.5)
        scores[..., np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        joined = scores / scores.sum(axis=-1, keepdims=True) @ v
        return joined.transpose(0, 2, 1, 3).reshape(windows, tokens, -1)

    def _rotated(self, x: np.ndarray) -> np.ndarray:
        """RoPE in Hugging Face's order: pairs are half a head apart."""
        angles = np.outer(np.arange(x.shape[-2]), rope_inverse_frequencies(self.config)).astype(np.float32)
        low, high = np.split(x, 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def calibration_threads(config: ModelConfig, threads: int) -> int:
    """BLAS threads for a block's products with the few hundred tokens of a sample: one for matrices of less than LARGE
    weights. Theirs take a millisecond, and threads that wait for a core of a busy machine take longer.
    """
    largest = max(shape.rows * shape.cols for shape in matrix_shapes(config).values())
    return 1 if largest < LARGE else threads


def relative_error(output: np.ndarray, dense: np.ndarray) -> float:
    """Squared error of outputs f32 [..., rows] over the squared norm of the dense ones, mean over tokens.

    Relative, because a norm will divide by a token's size, and because a few tokens (the first of a text) are a hundred
    times as large as the others and would decide alone.
    """
    return float((np.square(output - dense).sum(axis=-1) / np.square(dense).sum(axis=-1)).mean(dtype=np.float64))


def unmasked(site: str, inputs: np.ndarray) -> np.ndarray:
    """The Mask of a dense run."""
    del site
    return inputs
