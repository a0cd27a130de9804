"""The four places of a block where inputs are collected, in the order in which a token meets them."""

from __future__ import annotations

import numpy as np

from spqt_ti.kernels.shared.geometry import TILE_COLUMN_BYTES, ZigzagShape, tiles_for
from spqt_ti.model.config import ModelConfig

SITES = ("qkv", "o", "gate_up", "down")

# Site -> the (stacked) matrix that reads it, within a block.
MODULES = {
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}


def matrix_shapes(config: ModelConfig) -> dict[str, ZigzagShape]:
    """Site -> shape of the (stacked) matrix that reads it."""
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    attention = config.num_attention_heads * config.head_dim
    return {
        "qkv": ZigzagShape(heads, config.hidden_size),
        "o": ZigzagShape(config.hidden_size, attention),
        "gate_up": ZigzagShape(2 * config.intermediate_size, config.hidden_size),
        "down": ZigzagShape(config.hidden_size, config.intermediate_size),
    }


def inputs_per_site(config: ModelConfig) -> np.ndarray:
    """Inputs that a token has at each site of a block, i32 [4]."""
    shapes = matrix_shapes(config)
    return np.array([shapes[site].cols for site in SITES], np.int32)


def bytes_per_token(config: ModelConfig, active: np.ndarray) -> float:
    """Bytes of weights that a token reads with these numbers of active inputs [layers, 4].

    The head is read whole.
    """
    shapes = matrix_shapes(config)
    columns = active.sum(axis=0)
    blocks = sum(float(n) * shapes[site].bytes_per_column for site, n in zip(SITES, columns, strict=True))
    return blocks + tiles_for(config.vocab_size) * config.hidden_size * TILE_COLUMN_BYTES
