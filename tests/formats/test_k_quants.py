"""The other k-quants beside Q4_K: ggml's bytes and values, and the round trip of their fields."""

import hashlib
from types import ModuleType

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q2_k, q3_k, q5_k, q6_k

FORMATS = {"Q2_K": q2_k, "Q3_K": q3_k, "Q5_K": q5_k, "Q6_K": q6_k}
# Where the f16 numbers of a superblock begin, and how many there are.
HALVES = {"Q2_K": (80, 2), "Q3_K": (108, 1), "Q5_K": (0, 2), "Q6_K": (208, 1)}
each_format = pytest.mark.parametrize("name", FORMATS)


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


@each_format
@pytest.mark.parametrize("kind", distributions(1, 0))
def test_gives_ggmls_bytes(kind: str, name: str) -> None:
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    values = distributions(256, 1)[kind].astype(np.float32)
    theirs = libgguf.quantize_rows(values, libgguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(FORMATS[name].quantize(values), theirs.reshape(-1, FORMATS[name].BYTES))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("Q2_K", "005729dcfd96b3b4"),
        ("Q3_K", "72a4efe8c879e88b"),
        ("Q5_K", "38a3eb154d810d72"),
        ("Q6_K", "d62359a0a09b1beb"),
    ],
)
def test_gives_the_bytes_that_ggml_gave(name: str, digest: str) -> None:
    """SHA-256 of libgguf 0.2.2's bytes, recorded, for machines without it."""
    i = np.arange(64 * 256)
    values = (np.sin(0.37 * i + 0.1) * (1 + 0.01 * (i % 256))).astype(np.float32).reshape(64, 256)
    assert hashlib.sha256(FORMATS[name].quantize(values).tobytes()).hexdigest().startswith(digest)


@each_format
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_dequantises_as_ggml_and_packs_back(name: str, seed: int) -> None:
    rng, (at, count) = np.random.default_rng(seed), HALVES[name]
    module: ModuleType = FORMATS[name]
    superblocks = rng.integers(0, 256, (8, module.BYTES), np.uint8)
    superblocks[:, at : at + 2 * count] = rng.uniform(-2, 2, (8, count)).astype(np.float16).view(np.uint8)
    expected = gguf.quants.dequantize(superblocks, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(module.dequantize(superblocks), expected)
    fields = module.unpack(superblocks)
    packed = module.pack(*fields) if isinstance(fields, tuple) else module.pack(fields)
    np.testing.assert_array_equal(packed, superblocks)


@pytest.mark.parametrize(("name", "error"), [("Q2_K", 0.297), ("Q3_K", 0.151), ("Q5_K", 0.0363), ("Q6_K", 0.0177)])
def test_error_is_that_of_the_format(name: str, error: float) -> None:
    values = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
    difference = FORMATS[name].dequantize(FORMATS[name].quantize(values)) - values
    assert np.sqrt(np.square(difference).mean()) == pytest.approx(error, rel=0.03)


@each_format
def test_refuses_what_it_cannot_hold(name: str) -> None:
    for bad, message in ((np.nan, "NaN"), (np.inf, "infinity"), (3e38, "too large")):
        with pytest.raises(QuantizationError, match=message):
            FORMATS[name].quantize(np.full((1, 256), bad, np.float32))
    with pytest.raises(QuantizationError, match=rf"{name} takes an array uint8 \[n, {FORMATS[name].BYTES}\]"):
        FORMATS[name].dequantize(np.zeros((1, 144), np.uint8))
