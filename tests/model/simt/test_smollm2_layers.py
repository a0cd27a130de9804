"""The first layers of the real SmolLM2, at its own sizes, against float64: few enough for the Metal emulator."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import llama_float64
import numpy as np
import pytest
import tiny_containers
import tiny_models

from spqt_ti.api import open_quantized
from spqt_ti.model.runner import Llama

pytestmark = [pytest.mark.threadgroups, pytest.mark.slow]

LAYERS = 2
TOKENS = [504, 3575]


def test_a_prompt_and_a_token(smollm2_gguf: Path, tmp_path: Path, backend_name: str) -> None:
    """Prefill of one token and the decoding of another, with the whole vocabulary."""
    whole = open_quantized(smollm2_gguf, backend_name)
    config = dataclasses.replace(whole.config, num_hidden_layers=LAYERS)
    weights = {name: values for name, values in whole.weights() if name in config.tensor_shapes()}
    source = tiny_models.write_huggingface(tmp_path / "source", config, weights)
    container = tiny_containers.quantize(source, tmp_path / "zigzag")
    expected = llama_float64.forward(config, dict(container.weights()), TOKENS)
    model = Llama(container, backend_name=backend_name, context=32)
    got = np.stack([model.prefill(TOKENS[:1])[0], model.decode(TOKENS[1])])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
    assert model.best_token() == expected[-1].argmax()
