"""The prediction of GPTQ's time: the order of magnitude that is known."""

import dataclasses

from spqt_ti.convert.gptq_cost import gptq_seconds
from spqt_ti.model.config import ModelConfig

SMOLLM2 = ModelConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    head_dim=64, vocab_size=49152, rms_norm_eps=1e-5, rope_theta=1e5, max_position_embeddings=8192,
    tie_word_embeddings=True, hidden_act="silu",
)  # fmt: skip
LLAMA_2_7B = dataclasses.replace(
    SMOLLM2, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=32, head_dim=128, vocab_size=32000, tie_word_embeddings=False,
)  # fmt: skip


def test_orders_of_magnitude() -> None:
    assert 30 < gptq_seconds(SMOLLM2, 16384, 0) < 70
    assert 70 < gptq_seconds(SMOLLM2, 16384, 16384) < 130
    assert 3600 < gptq_seconds(LLAMA_2_7B, 16384, 16384) < 3 * 3600
