"""Q6_K: ggml's bytes and values, and the round trip of its fields."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q6_k


def distributions(n: int, seed: int) -> dict[str, np.ndarray]:
    """f32 [n, 256] of several kinds: each reaches other branches of the search."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((n, 256))
    return {
        "normal": normal,
        "laplace": rng.laplace(size=(n, 256)),
        "outliers": normal * np.where(rng.random((n, 256)) < 0.02, 30.0, 1.0),
        "positive": np.abs(normal),
        "scales": normal * 10.0 ** rng.integers(-6, 4, (n, 1)),
        "tiny sub-blocks": normal * np.repeat(rng.choice([0, 1e-20, 1e-14, 1.0], (n, 16)), 16, axis=1),
        "steps": rng.integers(-32, 32, (n, 256)) * 0.01,
        "ties": rng.choice([-1.0, 1.0], (n, 256)),
        "constant": np.full((n, 256), 0.37),
        "zero": np.zeros((n, 256)),
    }


@pytest.mark.parametrize("kind", distributions(1, 0))
def test_gives_ggmls_bytes(kind: str) -> None:
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    values = distributions(256, 1)[kind].astype(np.float32)
    theirs = libgguf.quantize_rows(values, libgguf.GGMLQuantizationType.Q6_K)
    np.testing.assert_array_equal(q6_k.quantize(values), theirs.reshape(-1, q6_k.BYTES))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_dequantises_as_ggml_and_packs_back(seed: int) -> None:
    superblocks = np.random.default_rng(seed).integers(0, 256, (8, q6_k.BYTES), np.uint8)
    superblocks[:, 208:] = np.random.default_rng(seed).uniform(-2, 2, (8, 1)).astype(np.float16).view(np.uint8)
    expected = gguf.quants.dequantize(superblocks, gguf.GGMLQuantizationType.Q6_K)
    np.testing.assert_array_equal(q6_k.dequantize(superblocks), expected)
    np.testing.assert_array_equal(q6_k.pack(*q6_k.unpack(superblocks)), superblocks)


def test_error_is_that_of_the_format() -> None:
    values = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
    error = q6_k.dequantize(q6_k.quantize(values)) - values
    assert np.sqrt(np.square(error).mean()) == pytest.approx(0.0177, abs=0.0005)


def test_refuses_what_it_cannot_hold() -> None:
    for bad, message in ((np.nan, "NaN"), (np.inf, "infinity"), (3e38, "too large")):
        with pytest.raises(QuantizationError, match=message):
            q6_k.quantize(np.full((1, 256), bad, np.float32))
    with pytest.raises(QuantizationError, match=r"Q6_K takes an array uint8 \[n, 210\]"):
        q6_k.dequantize(np.zeros((1, 144), np.uint8))
