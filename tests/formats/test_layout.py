"""The two layouts: sizes, the rearrangement and its inverse, and odd shapes."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k

SHAPES = st.tuples(st.integers(1, 600), st.integers(1, 40))


def matrix(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(256, [8]), (960, [8, 8, 8, 6]), (576, [8, 8, 2]), (192, [6]), (1, [1]), (257, [8, 1]), (33, [2])],
)
def test_band_sub_blocks(rows: int, expected: list[int]) -> None:
    assert layouts.band_sub_blocks(rows) == expected


@pytest.mark.parametrize(
    ("rows", "cols", "layout", "expected"),
    [
        (512, 10, "zigzag", 2 * 10 * 144),
        (960, 576, "zigzag", 576 * (3 * 144 + 112)),
        (1, 3, "zigzag", 3 * 48),
        (65, 1, "zigzag", 80),
        (5, 512, "row", 5 * 2 * 144),
        (5, 257, "row", 5 * 2 * 144),
    ],
)
def test_nbytes(rows: int, cols: int, layout: str, expected: int) -> None:
    assert layouts.nbytes(rows, cols, layout) == expected


def test_zigzag_superblock_is_a_column_of_a_band() -> None:
    w = matrix(768, 5)
    stored = layouts.quantize_matrix(w, "zigzag").reshape(3, 5, 144)
    for band in range(3):
        for col in range(5):
            expected = q4_k.quantize(np.ascontiguousarray(w[256 * band : 256 * band + 256, col])[None])
            np.testing.assert_array_equal(stored[band, col], expected[0])


def test_zigzag_is_the_permutation_of_the_paper() -> None:
    """dst[(i*K + j)*256 + k] = src[(i*256 + k)*K + j], written out."""
    w = matrix(512, 7)
    flat = w.reshape(-1)
    i, j, k = np.meshgrid(np.arange(2), np.arange(7), np.arange(256), indexing="ij")
    rearranged = flat[(i * 256 + k) * 7 + j].reshape(-1, 256)
    np.testing.assert_array_equal(layouts.quantize_matrix(w, "zigzag").reshape(-1, 144), q4_k.quantize(rearranged))


def test_row_layout_is_what_ggml_writes() -> None:
    w = matrix(20, 768)
    stored = layouts.quantize_matrix(w, "row")
    expected = gguf.quants.dequantize(stored.reshape(20, -1), gguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(layouts.dequantize_matrix(stored, 20, 768, "row"), expected)
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    theirs = libgguf.quantize_rows(w, libgguf.GGMLQuantizationType.Q4_K)
    np.testing.assert_array_equal(stored, theirs.reshape(-1))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(0, 10))
def test_odd_shapes_come_back(layout: str, shape: tuple[int, int], seed: int) -> None:
    rows, cols = shape
    w = matrix(rows, cols, seed)
    data = layouts.quantize_matrix(w, layout)
    assert data.shape == (layouts.nbytes(rows, cols, layout),)
    restored = layouts.dequantize_matrix(data, rows, cols, layout)
    assert restored.shape == w.shape
    assert restored.flags.c_contiguous
    assert np.abs(restored - w).max() < 0.6
    assert np.square(restored - w).mean() < 0.15**2


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_rearrangement_moves_every_value_once(shape: tuple[int, int]) -> None:
    """Integers 0..15 with sub-blocks that reach both ends quantise exactly, so the round trip must be exact."""
    rows, cols = shape
    w = (np.arange(rows * cols).reshape(rows, cols) % 16).astype(np.float32)
    for layout in layouts.LAYOUTS:
        restored = layouts.dequantize_matrix(layouts.quantize_matrix(w, layout), rows, cols, layout)
        assert np.abs(restored - w).max() < 0.5


@pytest.mark.parametrize("rows", [1, 32, 33, 64, 192, 255, 257, 320])
def test_truncated_superblocks_are_prefixes_of_padded_ones(rows: int) -> None:
    w = matrix(rows, 3)
    padded = np.zeros((-(-rows // 256) * 256, 3), np.float32)
    padded[:rows] = w
    whole = layouts.quantize_matrix(padded, "zigzag").reshape(-1, 144)
    stored = layouts.superblocks(layouts.quantize_matrix(w, "zigzag"), rows, 3, "zigzag")
    kept = layouts.band_bytes(layouts.band_sub_blocks(rows)[-1])
    np.testing.assert_array_equal(stored[:, :kept], whole[:, :kept])
    np.testing.assert_array_equal(
        q4_k.dequantize(stored)[-1, : (rows - 1) % 256 + 1], q4_k.dequantize(whole)[-1, : (rows - 1) % 256 + 1]
    )


def test_refuses_wrong_input() -> None:
    with pytest.raises(QuantizationError, match="unknown layout 'rows'"):
        layouts.nbytes(1, 1, "rows")
    with pytest.raises(QuantizationError, match="at least one row"):
        layouts.quantize_matrix(np.zeros((0, 5), np.float32), "row")
    with pytest.raises(QuantizationError, match="float64"):
        layouts.quantize_matrix(np.zeros((2, 2)), "row")
    with pytest.raises(QuantizationError, match=r"uint8 \[96\]"):
        layouts.dequantize_matrix(np.zeros(95, np.uint8), 1, 2, "zigzag")
