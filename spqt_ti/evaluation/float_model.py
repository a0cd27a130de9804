"""A dense Llama in f32 NumPy on weights of any origin: what the runner cannot hold (F16, Q8_0, row layout) is evaluated
with this. For models whose f32 weights fit into memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spqt_ti.container.container import stacked_matrices
from spqt_ti.model.config import ModelConfig
from spqt_ti.model.sites import MODULES
from spqt_ti.sparsity.search.block import Block, unmasked


class FloatModel:
    """Weights by Hugging Face name, f32, [out, in]; `blocks`, `embedding` and `head` are theirs."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray]) -> None:
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = self.embedding if config.tie_word_embeddings else weights["lm_head.weight"]
        self.blocks = [_block(config, weights, layer) for layer in range(config.num_hidden_layers)]
        self._norm, self._eps = weights["model.norm.weight"], np.float32(config.rms_norm_eps)

    def logits(self, tokens: Sequence[int], since: int = 0) -> np.ndarray:
        """Logits f32 [len(tokens) - since, vocab] of the tokens from `since` on, the first token at position 0."""
        x = self.embedding[np.asarray(tokens)][None]
        for block in self.blocks:
            x = block.run(x, unmasked).output
        x = x[0, since:]
        squares = np.mean(x * x, axis=-1, keepdims=True)
        return (x / np.sqrt(squares + self._eps) * self._norm) @ self.head.T

    def second_half(self, window: Sequence[int]) -> np.ndarray:
        """What `compare` scores (a Scorer)."""
        return self.logits(window, len(window) // 2)[:-1]


def _block(config: ModelConfig, weights: Mapping[str, np.ndarray], layer: int) -> Block:
    prefix, stacks = f"model.layers.{layer}.", stacked_matrices(config)

    def stacked(module: str, kind: str) -> np.ndarray:
        return np.concatenate([weights[f"{part}.{kind}"] for part in stacks[prefix + module].projections()])

    def has_bias(module: str) -> bool:
        return f"{next(iter(stacks[prefix + module].projections()))}.bias" in weights

    return Block(
        config,
        {site: stacked(module, "weight") for site, module in MODULES.items()},
        {site: stacked(module, "bias") for site, module in MODULES.items() if has_bias(module)},
        weights[f"{prefix}input_layernorm.weight"],
        weights[f"{prefix}post_attention_layernorm.weight"],
    )
