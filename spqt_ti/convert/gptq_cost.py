"""How long GPTQ of a model takes, by arithmetic from what was measured on SmolLM2: known before any work is done."""

from __future__ import annotations

from spqt_ti.model.config import ModelConfig

__all__ = ["gptq_seconds"]

# On two cores of an AMD EPYC (Zen 5). Per weight of the layers: the source over a token with H, quantising; per token
# drawn and weight read: decoding.
_WALK, _QUANTISE, _DRAW = 2.0e-11, 1.3e-7, 2.2e-11


def gptq_seconds(config: ModelConfig, tokens: int, drawn: int) -> float:
    """Seconds on two cores for `tokens` calibration tokens, `drawn` of which have to be drawn from the model."""
    heads = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    layers = sum(config.hidden_size * (2 * heads + 3 * width) for width in config.widths())
    head = config.hidden_size * config.vocab_size
    return layers * (_WALK * tokens + _QUANTISE) + (layers + head) * _DRAW * drawn
