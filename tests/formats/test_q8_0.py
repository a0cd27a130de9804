"""Q8_0 in NumPy against bytes made with ggml, and against the `gguf` package."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import q8_0
from spqt_ti.formats.fpenv import gradual_underflow

GOLDEN = Path(__file__).parents[1] / "data" / "q4_k_golden.npz"
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def test_quantise_equals_recorded_ggml() -> None:
    golden = np.load(GOLDEN)
    np.testing.assert_array_equal(q8_0.quantize(golden["values"].reshape(-1, 32)), golden["q8_0"])


@pytest.mark.parametrize("scale", [1e-45, 1e-37, 1e-6, 1.0, 1e5])
def test_quantise_equals_ggml(scale: float) -> None:
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    with gradual_underflow():  # for ggml's sake: another test may have started Taichi
        values = (np.random.default_rng(0).standard_normal((2000, 32)) * scale).astype(np.float32)
        expected = libgguf.quantize_rows(values, libgguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(q8_0.quantize(values), expected)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_both_ways_equal_gguf(scale: float) -> None:
    values = (np.random.default_rng(1).standard_t(2, (2000, 32)) * scale).astype(np.float32)
    blocks = q8_0.quantize(values)
    np.testing.assert_array_equal(blocks, gguf.quants.quantize(values, Q8_0))
    expected = gguf.quants.dequantize(blocks, Q8_0)
    np.testing.assert_array_equal(q8_0.dequantize(blocks).view(np.uint32), expected.view(np.uint32))


def test_halves_go_away_from_zero() -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, :7] = [127, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997]
    np.testing.assert_array_equal(q8_0.quantize(values)[0, 2:9].view(np.int8), [127, 1, -1, 2, 3, -3, 0])


def test_zeros() -> None:
    assert not q8_0.quantize(np.zeros((2, 32), np.float32)).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        q8_0.quantize(np.full((1, 32), value, np.float32))


def test_refuses_scales_beyond_f16() -> None:
    with pytest.raises(QuantizationError, match="65504"):
        q8_0.quantize(np.full((1, 32), 1e7, np.float32))


def test_refuses_other_arrays() -> None:
    with pytest.raises(QuantizationError, match=r"float32 \[n, 32\]"):
        q8_0.quantize(np.zeros((1, 32)))
    with pytest.raises(QuantizationError, match=r"uint8 \[n, 34\]"):
        q8_0.dequantize(np.zeros((1, 33), np.uint8))
