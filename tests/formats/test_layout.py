"""The two layouts: sizes, the rearrangement and its inverse, and odd shapes, for every scheme."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q2_k, q3_k, q4_k, q5_k, q6_k, q8_0
from spqt_ti.formats.scheme import Scheme
from spqt_ti.formats.schemes import SCHEMES

SHAPES = st.tuples(st.integers(1, 600), st.integers(1, 40))
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)

# Largest relative RMSE of normal values (.297, .151, .0715, .036, .0177, .0054) with room for small matrices, whose
# sub-blocks may hold a few values and zeros.
WORST = {"q2_k": 0.6, "q3_k": 0.3, "q4_k": 0.15, "q5_k": 0.08, "q6_k": 0.05, "q8_0": 0.01}


def matrix(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "expected"), [(256, [256]), (960, [256, 256, 256, 192]), (576, [256, 256, 64]), (1, [1]), (257, [256, 1])]
)
def test_band_rows(rows: int, expected: list[int]) -> None:
    assert layouts.band_rows(rows) == expected


@pytest.mark.parametrize(
    ("scheme", "rows", "cols", "layout", "expected"),
    [
        (q4_k.SCHEME, 512, 10, "zigzag", 2 * 10 * 144),
        (q4_k.SCHEME, 960, 576, "zigzag", 576 * (3 * 144 + 112)),
        (q4_k.SCHEME, 1, 3, "zigzag", 3 * 48),
        (q4_k.SCHEME, 65, 1, "zigzag", 80),
        (q4_k.SCHEME, 5, 512, "row", 5 * 2 * 144),
        (q4_k.SCHEME, 5, 257, "row", 5 * 2 * 144),
        (q2_k.SCHEME, 576, 10, "zigzag", 10 * (2 * 84 + 44)),
        (q3_k.SCHEME, 576, 10, "zigzag", 10 * (2 * 110 + 78)),
        (q5_k.SCHEME, 576, 10, "zigzag", 10 * (2 * 176 + 80)),
        (q6_k.SCHEME, 576, 10, "zigzag", 10 * (2 * 210 + 106)),
        (q6_k.SCHEME, 129, 1, "zigzag", 210),
        (q6_k.SCHEME, 5, 257, "row", 5 * 2 * 210),
        (q8_0.SCHEME, 576, 10, "zigzag", 10 * 18 * 34),
        (q8_0.SCHEME, 33, 3, "zigzag", 3 * 2 * 34),
        (q8_0.SCHEME, 5, 257, "row", 5 * 9 * 34),
    ],
)
def test_nbytes(scheme: Scheme, rows: int, cols: int, layout: str, expected: int) -> None:
    assert layouts.nbytes(rows, cols, layout, scheme) == expected


@each_scheme
def test_zigzag_superblock_is_a_column_of_a_band(scheme: Scheme) -> None:
    w = matrix(768, 5)
    stored = layouts.quantize_matrix(w, "zigzag", scheme).reshape(3, 5, -1, scheme.bytes)
    for band in range(3):
        for col in range(5):
            values = np.ascontiguousarray(w[256 * band : 256 * band + 256, col]).reshape(-1, scheme.values)
            np.testing.assert_array_equal(stored[band, col], scheme.quantize(values))


@each_scheme
def test_zigzag_is_the_permutation_of_the_paper(scheme: Scheme) -> None:
    """dst[(i*K + j)*256 + k] = src[(i*256 + k)*K + j], written out."""
    w = matrix(512, 7)
    flat = w.reshape(-1)
    i, j, k = np.meshgrid(np.arange(2), np.arange(7), np.arange(256), indexing="ij")
    rearranged = flat[(i * 256 + k) * 7 + j].reshape(-1, scheme.values)
    stored = layouts.quantize_matrix(w, "zigzag", scheme).reshape(-1, scheme.bytes)
    np.testing.assert_array_equal(stored, scheme.quantize(rearranged))


@each_scheme
def test_row_layout_is_what_ggml_writes(scheme: Scheme) -> None:
    w = matrix(20, 768)
    kind = gguf.GGMLQuantizationType[scheme.label]
    stored = layouts.quantize_matrix(w, "row", scheme)
    expected = gguf.quants.dequantize(stored.reshape(20, -1), kind)
    np.testing.assert_array_equal(layouts.dequantize_matrix(stored, 20, 768, "row", scheme), expected)
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    theirs = libgguf.quantize_rows(w, libgguf.GGMLQuantizationType[scheme.label])
    np.testing.assert_array_equal(stored, theirs.reshape(-1))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@each_scheme
@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 10))
def test_odd_shapes_come_back(scheme: Scheme, layout: str, shape: tuple[int, int], seed: int) -> None:
    rows, cols = shape
    w = matrix(rows, cols, seed)
    data = layouts.quantize_matrix(w, layout, scheme)
    assert data.shape == (layouts.nbytes(rows, cols, layout, scheme),)
    restored = layouts.dequantize_matrix(data, rows, cols, layout, scheme)
    assert restored.shape == w.shape
    assert restored.flags.c_contiguous
    assert np.abs(restored - w).max() < 4 * WORST[scheme.name]
    assert np.square(restored - w).mean() < WORST[scheme.name] ** 2


@each_scheme
@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_rearrangement_moves_every_value_once(scheme: Scheme, shape: tuple[int, int]) -> None:
    """A value misplaced is off by a whole step or more."""
    rows, cols = shape
    levels = {"q2_k": 4, "q3_k": 4}.get(scheme.name, 16)
    w = (np.arange(rows * cols).reshape(rows, cols) % levels).astype(np.float32)
    for layout in layouts.LAYOUTS:
        data = layouts.quantize_matrix(w, layout, scheme)
        assert np.abs(layouts.dequantize_matrix(data, rows, cols, layout, scheme) - w).max() < 0.5


@pytest.mark.parametrize("rows", [1, 32, 33, 64, 128, 129, 192, 255, 257, 320])
@each_scheme
def test_a_last_band_keeps_what_its_rows_need(scheme: Scheme, rows: int) -> None:
    w = matrix(rows, 3)
    padded = np.zeros((-(-rows // 256) * 256, 3), np.float32)
    padded[:rows] = w
    data = layouts.quantize_matrix(w, "zigzag", scheme)
    assert data.size == 3 * (rows // 256 * layouts.band_bytes(256, scheme) + layouts.band_bytes(rows % 256, scheme))
    whole = layouts.quantize_matrix(padded, "zigzag", scheme)
    restored = layouts.dequantize_matrix(whole, len(padded), 3, "zigzag", scheme)[:rows]
    np.testing.assert_array_equal(layouts.dequantize_matrix(data, rows, 3, "zigzag", scheme), restored)


def test_refuses_wrong_input() -> None:
    scheme = q4_k.SCHEME
    with pytest.raises(QuantizationError, match="unknown layout 'rows'"):
        layouts.nbytes(1, 1, "rows", scheme)
    with pytest.raises(QuantizationError, match="at least one row"):
        layouts.quantize_matrix(np.zeros((0, 5), np.float32), "row", scheme)
    with pytest.raises(QuantizationError, match="float64"):
        layouts.quantize_matrix(np.zeros((2, 2)), "row", scheme)
    with pytest.raises(QuantizationError, match=r"Q4_K matrix \(zigzag\) is uint8 \[96\]"):
        layouts.dequantize_matrix(np.zeros(95, np.uint8), 1, 2, "zigzag", scheme)
