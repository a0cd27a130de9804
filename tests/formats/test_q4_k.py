"""Q4_K in NumPy against published bytes, bytes made with ggml, ggml itself, and the `gguf` package."""

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spqt_ti.backend import start
from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q4_k
from spqt_ti.formats.fpenv import gradual_underflow

GOLDEN = Path(__file__).parents[1] / "data" / "q4_k_golden.npz"


def wave() -> np.ndarray:
    i = np.arange(256)
    return (np.sin(0.37 * i + 0.1) * (1 + 0.01 * i)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "start"),
    [
        (wave(), "4e1f2f2b98dde1e897dde0e7cd1478ff486a9cbddeedfcea"),
        (np.zeros(256), "00" * 16),
        (np.ones(256), "56140000ffffffff000000000f0f0f0f"),
        (-np.ones(256), "0000102400000000fffffffff0f0f0f0"),
        (np.linspace(-1, 1, 256), "3e140c240f4fcfcf3f2f1f0f0f0f000f"),
    ],
    ids=["wave", "zeros", "ones", "minus ones", "ramp"],
)
def test_published_bytes(values: np.ndarray, start: str) -> None:
    superblock = q4_k.quantize(values.astype(np.float32)[None]).tobytes()
    assert superblock.hex().startswith(start)


def test_published_hash() -> None:
    assert hashlib.sha256(q4_k.quantize(wave()[None]).tobytes()).hexdigest().startswith("22cb8a841240bdc8")


def test_quantise_equals_recorded_ggml() -> None:
    golden = np.load(GOLDEN)
    np.testing.assert_array_equal(q4_k.quantize(golden["values"]), golden["q4_k"])


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "positive", "sub-block scales", "denormal", "large", "bits"])
def test_quantise_equals_ggml(kind: str) -> None:
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    rng = np.random.default_rng(len(kind))
    shape = (500, 8, 32)
    normal = rng.standard_normal(shape)
    values = {
        "normal": lambda: normal * 0.02,
        "heavy tails": lambda: rng.standard_t(2, shape),
        "positive": lambda: rng.uniform(0, 1, shape),
        "sub-block scales": lambda: normal * 10.0 ** rng.uniform(-9, 3, (500, 8, 1)),
        "denormal": lambda: normal * 10.0 ** rng.uniform(-45, -33, (500, 8, 1)),
        "large": lambda: normal * 10.0 ** rng.uniform(4, 5.8, (500, 1, 1)),
        # Any f32 below 2**21 that bits can spell, signed zeros and denormals included.
        "bits": lambda: (
            (rng.integers(0, 148 << 23, shape) | rng.integers(0, 2, shape) << 31).astype(np.uint32).view(np.float32)
        ),
    }[kind]()
    with gradual_underflow():  # for ggml's sake: another test may have started Taichi
        values = values.reshape(-1, 256).astype(np.float32)
        expected = libgguf.quantize_rows(values, libgguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(q4_k.quantize(values), expected)


def test_dequantise_is_bit_equal_to_gguf() -> None:
    # Random bytes are valid superblocks; headers below 0x7c00 keep the f16 scales finite.
    superblocks = np.random.default_rng(0).integers(0, 256, (2000, 144), dtype=np.uint8)
    superblocks[:, [1, 3]] %= 0x7C
    expected = gguf.quants.dequantize(superblocks, gguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(q4_k.dequantize(superblocks).view(np.uint32), expected.view(np.uint32))


def test_unpack_and_pack_are_inverse() -> None:
    superblocks = np.random.default_rng(1).integers(0, 256, (500, 144), dtype=np.uint8)
    fields = q4_k.unpack(superblocks)
    assert fields.scales.max() == 63
    assert fields.mins.max() == 63
    assert fields.quants.max() == 15
    np.testing.assert_array_equal(q4_k.pack(fields), superblocks)


def test_fields_give_the_dequantised_values() -> None:
    superblocks = q4_k.quantize(np.random.default_rng(2).standard_normal((20, 256)).astype(np.float32))
    f = q4_k.unpack(superblocks)
    scale = np.repeat(f.d.astype(np.float32)[:, None] * f.scales, 32, axis=1)
    minimum = np.repeat(f.dmin.astype(np.float32)[:, None] * f.mins, 32, axis=1)
    np.testing.assert_array_equal(q4_k.dequantize(superblocks), scale * f.quants - minimum)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 256), elements=st.floats(-64, 64, width=32)),
    st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 3e4]),
)
def test_error_stays_within_the_coarsest_step(values: np.ndarray, factor: float) -> None:
    values = values * np.float32(factor)
    restored = q4_k.dequantize(q4_k.quantize(values))
    spread = np.ptp(np.append(values, np.float32(0)))
    # A 4-bit step of the widest range, plus the 6-bit rounding of scale and minimum, plus f16's smallest numbers.
    assert np.abs(restored - values).max() <= spread * (1 / 15 + 2 / 63) + 63 * 15 * 6e-8


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.5, 0.05, 1e5])
def test_constant_superblock(value: float) -> None:
    values = np.full((1, 256), value, np.float32)
    restored = q4_k.dequantize(q4_k.quantize(values))
    np.testing.assert_allclose(restored, values, rtol=1e-3)


def test_beats_min_max_rounding() -> None:
    x = np.random.default_rng(3).standard_normal((2000, 256)).astype(np.float32)
    parts = x.reshape(-1, 32)
    low, high = parts.min(axis=1, keepdims=True), parts.max(axis=1, keepdims=True)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    low = low.astype(np.float16).astype(np.float32)
    naive = np.clip(np.rint((parts - low) / scale), 0, 15) * scale + low

    def error(y: np.ndarray) -> float:
        return float(np.sqrt(np.mean((y.reshape(x.shape) - x) ** 2) / np.mean(x**2)))

    assert error(naive) == pytest.approx(0.079, abs=0.002)
    assert error(q4_k.dequantize(q4_k.quantize(x))) == pytest.approx(0.0715, abs=0.001)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    values = np.zeros((3, 256), np.float32)
    values[1, 200] = value
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        q4_k.quantize(values)


@pytest.mark.parametrize("value", [1e8, -5e6, 3e38])
def test_refuses_scales_beyond_f16(value: float) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 5] = value
    with pytest.raises(QuantizationError, match="65504"):
        q4_k.quantize(values)


@pytest.mark.parametrize(
    "values",
    [np.zeros((1, 256)), np.zeros((1, 256), np.float16), np.zeros(256, np.float32), np.zeros((2, 128), np.float32)],
    ids=["f64", "f16", "1-d", "width"],
)
def test_refuses_other_arrays(values: np.ndarray) -> None:
    with pytest.raises(QuantizationError, match=r"float32 \[n, 256\]"):
        q4_k.quantize(values)


def test_refuses_other_bytes() -> None:
    with pytest.raises(QuantizationError, match=r"uint8 \[n, 144\]"):
        q4_k.dequantize(np.zeros((1, 143), np.uint8))


def test_no_superblocks() -> None:
    assert q4_k.quantize(np.zeros((0, 256), np.float32)).shape == (0, 144)
    assert q4_k.dequantize(np.zeros((0, 144), np.uint8)).shape == (0, 256)


def test_denormals_survive_flush_to_zero() -> None:
    """Taichi leaves the thread that started it in flush-to-zero, where these superblocks would differ."""
    golden = np.load(GOLDEN)
    start("cpu")
    np.testing.assert_array_equal(q4_k.quantize(golden["values"]), golden["q4_k"])
