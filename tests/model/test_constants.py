"""Where the small tensors of a model lie."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

from spqt_ti.model.constants import Constants


@pytest.mark.parametrize(
    ("name", "context", "windows"),
    [("gqa", 64, None), ("mistral", 64, [5, 5]), ("mistral", 5, None), ("qwen2", 64, [17, 64]), ("qwen2", 16, None)],
)
def test_windows_only_where_they_hide_something(name: str, context: int, windows: list[int] | None) -> None:
    """Kernels ask whether there is one, and compile nothing of it otherwise."""
    constants = Constants.read(tiny_containers.container(tiny_containers.model_with(name)), context)
    assert ("window" in constants.layer) == (windows is not None)
    for layer, window in enumerate(windows or []):
        first = layer * constants.stride + constants.layer["window"]
        np.testing.assert_array_equal(constants.values[first : first + 16], window)


def test_norms_of_heads_and_biases() -> None:
    container = tiny_containers.container(tiny_containers.model_with("qwen3"))
    constants = Constants.read(container, 64)
    for name, tensor in {"q_norm": "self_attn.q_norm.weight", "ffn_norm": "post_attention_layernorm.weight",
                         "o_bias": "self_attn.o_proj.bias"}.items():  # fmt: skip
        expected = container.read(f"model.layers.1.{tensor}")
        first = constants.stride + constants.layer[name]
        np.testing.assert_array_equal(constants.values[first : first + expected.size], expected)
