"""The runner against transformers' Llama, given the same dequantised weights: an implementation that is not ours.

transformers computes in float64 here, so the tolerance is our own f32 rounding, as in test_llama.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny_containers

torch = pytest.importorskip("torch", reason="torch is not installed: pip install '.[oracle]'")
transformers_models = pytest.importorskip("transformers_models")

TOKENS = [0, 17, 203, 5, 5, 299, 42, 150, 3, 88, 261, 7, 19, 33, 250, 121, 64, 90, 2, 11]
TOLERANCE = 1e-5  # of the largest logit


def oracle_logits(case: str, dtype: str) -> np.ndarray:
    """transformers' logits f64 [T, vocab] on the container's dequantised weights."""
    container = tiny_containers.container(case, dtype=dtype)
    model = transformers_models.of_container(container)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].double().numpy()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, "f32") for case in tiny_containers.MODELS),
        ("gqa", "bf16"),  # from two shards
        ("mha+tied", "f16"),
    ],
)
def test_logits(case: str, dtype: str) -> None:
    expected = oracle_logits(case, dtype)
    model = tiny_containers.llama(case, dtype=dtype)
    model.reset()
    got = model.prefill(TOKENS, logits="all")
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
