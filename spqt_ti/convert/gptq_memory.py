"""How much memory GPTQ of a model takes, by arithmetic: known before any work is done."""

from __future__ import annotations

from spqt_ti.convert.walk import BATCH_TOKENS, WORKERS
from spqt_ti.model.config import ModelConfig

__all__ = ["gptq_bytes"]

_F32, _F64 = 4, 8


def gptq_bytes(config: ModelConfig, tokens: int, window: int) -> int:
    """Bytes that quantising holds at most, beside the interpreter, for `tokens` calibration tokens in windows.

    What draws the tokens is gone by then. Two phases are compared: a layer seen by the windows, and the H of its widest
    inputs factored.
    """
    hidden, heads, width = config.hidden_size, config.num_attention_heads * config.head_dim, max(config.widths())
    keys_and_values = 2 * config.num_key_value_heads * config.head_dim
    layer = hidden * (2 * heads + keys_and_values + 3 * width)
    hessians = _F64 * (2 * hidden**2 + heads**2 + width**2)
    states = _F32 * tokens * hidden
    batch = max(1, BATCH_TOKENS // window) * window
    # Of a window: inputs and outputs of the sites, some of them twice, and three times the scores of attention. Of a
    # batch: the inputs twice, and the products of them.
    activations = _F32 * window * (8 * hidden + 3 * heads + 2 * keys_and_values + 6 * width)
    scores = 3 * _F32 * window * window * config.num_attention_heads
    inputs = 2 * _F32 * batch * (2 * hidden + heads + width)
    products = _F32 * (2 * hidden**2 + heads**2 + width**2)
    seen = 2 * _F32 * layer + hessians + WORKERS * (activations + scores + inputs + products)
    # Reordered, its factor (and LAPACK's copy) in float64, what errors weigh in f32; then w, columns, losses and bytes.
    widest = max(hidden, heads, width)
    rows = max(2 * width, heads + keys_and_values)
    factored = hessians + (4 * _F64 + _F32) * widest**2 + 4 * _F32 * rows * hidden
    embedding = _F32 * config.vocab_size * hidden
    return states + max(embedding, seen, factored)
