"""The prediction of GPTQ's memory, against what NumPy was given and for a model of 7 billion weights."""

import tracemalloc
from pathlib import Path

import numpy as np
import tiny_models

from spqt_ti.container.matrices import plan_matrices
from spqt_ti.convert.choices import parse_storage
from spqt_ti.convert.gptq_memory import gptq_bytes
from spqt_ti.convert.gptq_model import GptqQuantizer
from spqt_ti.convert.quantize import open_source
from spqt_ti.model.config import ModelConfig


def test_holds_for_a_layer(tmp_path: Path) -> None:
    config = tiny_models.tiny_config(hidden_size=192, intermediate_size=736)
    weights = tiny_models.random_weights(config)
    checkpoint = open_source(tiny_models.write_huggingface(tmp_path / "tiny", config, weights))
    windows = np.random.default_rng(0).integers(0, config.vocab_size, (9, 256)).tolist()
    quantizer = GptqQuantizer(checkpoint, windows)
    matrices = [m for m in plan_matrices(config, parse_storage("q8_0")).values() if "layers.0" in m.name]
    tracemalloc.start()
    for matrix in matrices:
        quantizer(matrix, np.ones((matrix.rows, matrix.cols), np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.3 * gptq_bytes(config, 9 * 256, 256) < peak < gptq_bytes(config, 9 * 256, 256)


def test_7b_fits_24_gigabytes() -> None:
    config = ModelConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, head_dim=128, vocab_size=32000, rms_norm_eps=1e-5, rope_theta=1e4,
        max_position_embeddings=4096, tie_word_embeddings=False, hidden_act="silu",
    )  # fmt: skip
    assert 5e9 < gptq_bytes(config, 32768, 512) < 10e9
