"""The Taichi quantisers give the bytes of the NumPy ones, and so ggml's."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spqt_ti.errors import QuantizationError
from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q4_k
from spqt_ti.formats.fpenv import gradual_underflow
from spqt_ti.formats.scheme import Scheme
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.kernels.pack import quantize as pack
from spqt_ti.kernels.pack.quantize import quantize_matrix

GOLDEN = Path(__file__).parents[2] / "data" / "q4_k_golden.npz"
both_layouts = pytest.mark.parametrize("layout", layouts.LAYOUTS)
all_schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)


def check(w: np.ndarray, layout: str, scheme: Scheme) -> None:
    np.testing.assert_array_equal(quantize_matrix(w, layout, scheme), layouts.quantize_matrix(w, layout, scheme))


@all_schemes
@both_layouts
def test_a_scheme_without_a_kernel_has_the_same_bytes(scheme: Scheme, layout: str, monkeypatch) -> None:
    w = make("normal", 700, 130, np.random.default_rng(3))
    expected = quantize_matrix(w, layout, scheme)
    monkeypatch.setattr(pack, "packer_of", lambda scheme: None)
    monkeypatch.setattr(pack, "CHUNK_WEIGHTS", 40_000)
    np.testing.assert_array_equal(quantize_matrix(w, layout, scheme), expected)


def test_equals_recorded_ggml() -> None:
    golden = np.load(GOLDEN)
    expected = golden["q4_k"].reshape(-1)
    np.testing.assert_array_equal(quantize_matrix(golden["values"], "row", q4_k.SCHEME), expected)
    np.testing.assert_array_equal(quantize_matrix(golden["values"].T, "zigzag", q4_k.SCHEME), expected)


@all_schemes
def test_equals_ggml(scheme: Scheme) -> None:
    libgguf = pytest.importorskip("libgguf", reason="ggml's own quantiser is not installed (pip install libgguf)")
    w = np.random.default_rng(0).standard_t(3, (500, 1024)).astype(np.float32)
    expected = libgguf.quantize_rows(w, libgguf.GGMLQuantizationType[scheme.label]).reshape(-1)
    np.testing.assert_array_equal(quantize_matrix(w, "row", scheme), expected)


def make(kind: str, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """f32 [rows, cols] of a kind. Guarded, or the cast to f32 would make zeros of denormals once Taichi is up."""
    normal = rng.standard_normal((rows, cols))
    values = {
        "normal": lambda: normal * 0.02,
        "positive": lambda: np.abs(normal),
        "offset": lambda: normal * 1e-3 - 1,
        "sparse": lambda: np.where(rng.random((rows, cols)) < 0.03, normal, 0),
        "levels": lambda: np.round(normal),
        "scales": lambda: normal * 10.0 ** rng.uniform(-44, 5, (rows, cols)),
        "denormal": lambda: normal * 10.0 ** rng.uniform(-45, -35),
        "tiny": lambda: normal * 10.0 ** rng.uniform(-20, -4),
        "tiny levels": lambda: np.round(normal) * 10.0 ** rng.uniform(-20, -4),
        "mixed": lambda: normal * 10.0 ** rng.uniform(-20, 0, (1, cols)) * (rng.random((rows, cols)) < 0.3),
        "large": lambda: normal * 2e5,
        "zero": lambda: normal * 0,
        "constant": lambda: np.full((rows, cols), rng.standard_normal()),
    }
    if kind == "bits":  # any f32 below 2**19 that bits can spell, signed zeros and denormals included
        signs = rng.integers(0, 2, (rows, cols)) << 31
        return (rng.integers(0, 146 << 23, (rows, cols)) | signs).astype(np.uint32).view(np.float32)
    with gradual_underflow():
        return values[kind]().astype(np.float32)


KINDS = ["normal", "positive", "offset", "sparse", "levels", "scales", "denormal", "large", "zero", "constant"]
KINDS += ["tiny", "tiny levels", "mixed", "bits"]


@all_schemes
@both_layouts
@pytest.mark.parametrize("kind", KINDS)
def test_equals_numpy(kind: str, layout: str, scheme: Scheme) -> None:
    check(make(kind, 330, 290, np.random.default_rng(4)), layout, scheme)


@all_schemes
@both_layouts
@settings(max_examples=20, deadline=None)
@given(
    st.one_of(st.tuples(st.integers(1, 600), st.integers(1, 40)), st.tuples(st.integers(1, 5), st.integers(1, 600))),
    st.sampled_from(KINDS),
    st.integers(0, 100),
)
def test_odd_shapes_equal_numpy(scheme: Scheme, layout: str, shape: tuple[int, int], kind: str, seed: int) -> None:
    check(make(kind, *shape, np.random.default_rng(seed)), layout, scheme)


@all_schemes
@both_layouts
@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (32, 16), (64, 17), (256, 16), (257, 15), (255, 257)])
def test_edges_equal_numpy(scheme: Scheme, layout: str, shape: tuple[int, int]) -> None:
    check(make("normal", *shape, np.random.default_rng(5)), layout, scheme)


@all_schemes
@both_layouts
def test_chunks_and_redone_superblocks(scheme: Scheme, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits bring every seam into one matrix: chunks, batches of redone superblocks, the short last band."""
    monkeypatch.setattr(pack, "CHUNK_WEIGHTS", 40_000)
    monkeypatch.setattr(pack, "REDO_SUPERBLOCKS", 7)
    w = make("scales", 800, 150, np.random.default_rng(6))
    w[:, 20:40] = make("denormal", 800, 20, np.random.default_rng(7))
    w[700:, 60:80] = make("tiny", 100, 20, np.random.default_rng(7))
    check(w, layout, scheme)


@all_schemes
@both_layouts
def test_views_and_read_only_arrays(scheme: Scheme, layout: str) -> None:
    w = make("normal", 300, 200, np.random.default_rng(8))
    w.flags.writeable = False
    check(w, layout, scheme)
    check(w[::2, 3:], layout, scheme)
    check(np.asfortranarray(w), layout, scheme)


@all_schemes
@both_layouts
def test_repeats_bit_for_bit(scheme: Scheme, layout: str) -> None:
    w = make("normal", 512, 512, np.random.default_rng(9))
    first = quantize_matrix(w, layout, scheme)
    for _ in range(3):
        np.testing.assert_array_equal(quantize_matrix(w, layout, scheme), first)


@all_schemes
@both_layouts
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("at", [(0, 0), (255, 31), (299, 299)])
def test_refuses_nan_and_infinity_by_name(scheme: Scheme, layout: str, bits: int, at: tuple[int, int]) -> None:
    w = make("normal", 300, 300, np.random.default_rng(10))
    w.view(np.uint32)[at] = bits
    with pytest.raises(QuantizationError, match=r"^blk\.3\.ffn_up: NaN or infinity"):
        quantize_matrix(w, layout, scheme, "blk.3.ffn_up")


@all_schemes
@both_layouts
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_a_matrix_of_them(scheme: Scheme, layout: str, value: float) -> None:
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        quantize_matrix(np.full((64, 64), value, np.float32), layout, scheme)


@both_layouts
@pytest.mark.parametrize(
    ("scheme", "value"),
    [
        ("q4_k", 1e8),
        ("q4_k", -5e6),
        ("q4_k", 3e38),
        ("q6_k", 3e8),
        ("q6_k", -3e38),
        ("q8_0", 9e6),
        ("q8_0", -3e38),
        ("q2_k", 3e6),
        ("q2_k", -1e6),
        ("q3_k", 1e7),
        ("q3_k", -3e38),
        ("q5_k", 1e9),
        ("q5_k", -5e6),
    ],
)
def test_refuses_values_beyond_f16_by_name(layout: str, scheme: str, value: float) -> None:
    w = make("normal", 40, 40, np.random.default_rng(11))
    w[39, 39] = value
    with pytest.raises(QuantizationError, match=r"^up: values too large"):
        quantize_matrix(w, layout, SCHEMES[scheme], "up")


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.zeros((4, 4)), "float64"),
        (np.zeros((4, 4), np.float16), "float16"),
        (np.zeros(4, np.float32), r"\[4\]"),
        (np.zeros((1, 2, 3), np.float32), r"\[1, 2, 3\]"),
        (np.zeros((0, 4), np.float32), "at least one row"),
    ],
)
def test_refuses_other_arrays(w: np.ndarray, message: str) -> None:
    with pytest.raises(QuantizationError, match="^gate: .*" + message):
        quantize_matrix(w, "zigzag", q4_k.SCHEME, "gate")


def test_refuses_unknown_layout_and_too_many_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QuantizationError, match="unknown layout 'column'"):
        quantize_matrix(np.zeros((4, 4), np.float32), "column", q4_k.SCHEME)
    monkeypatch.setattr(pack, "CHUNK_WEIGHTS", 3)
    with pytest.raises(QuantizationError, match="more than 3 columns"):
        quantize_matrix(np.zeros((4, 4), np.float32), "row", q4_k.SCHEME)
