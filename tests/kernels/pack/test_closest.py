"""The search for the least squared error against the same search in NumPy, and against ggml's."""

import numpy as np
import pytest

from spqt_ti.convert.gptq import factored, quantize_columns
from spqt_ti.formats import affine, q2_k, q4_k, q5_k
from spqt_ti.formats import layout as layouts
from spqt_ti.kernels.pack.affine import AROUND, closest

COLS = 80  # more than a launch has
CASES = [(q2_k, 15, 0.9), (q4_k, 63, 0.97), (q5_k, 63, 0.93)]  # largest multiple, share of ggml's squared error


def weights(rows: int) -> np.ndarray:
    """f32 [rows, COLS], some sub-blocks of zeros, of one sign or constant."""
    w = np.random.default_rng(3).standard_normal((rows, COLS)).astype(np.float32)
    w[:32, 5], w[32:64, 6] = 0, 0.25
    w[:, 7] = np.abs(w[:, 7]) + 1
    return w


def quantised(w: np.ndarray, form, as_ggml: bool = False) -> np.ndarray:
    """What a diagonal H makes of it: nothing is compensated."""
    data = quantize_columns(w, factored(np.eye(COLS), 0.02), form.SCHEME, as_ggml=as_ggml)
    return layouts.dequantize_matrix(data, *w.shape, "zigzag", form.SCHEME)


def in_numpy(superblocks: np.ndarray, form, most: int) -> np.ndarray:
    """f32 [n, 256] quantised and read again."""
    how, sub_blocks = closest(form.SEARCH), 256 // form.SUB_BLOCK
    x = np.ascontiguousarray(superblocks.reshape(-1, form.SUB_BLOCK).T)
    scales, minima, searched = affine.search(x, np.ones_like(x), how)
    d, scale = affine.multiples(scales.reshape(-1, sub_blocks), most)
    dmin, low = affine.multiples(minima.reshape(-1, sub_blocks), most)
    units = np.repeat(d.astype(np.float32), sub_blocks), np.repeat(dmin.astype(np.float32), sub_blocks)
    begin = scale.reshape(-1).astype(np.float32), low.reshape(-1).astype(np.float32)
    best, kept = np.full(len(begin[0]), np.inf, np.float32), np.zeros_like(x)
    for a in range(-AROUND, AROUND + 1):
        step = units[0] * np.clip(begin[0] + a, 1, most)
        for b in range(-AROUND, AROUND + 1):
            offset = units[1] * np.clip(begin[1] + b, 0, most)
            levels = np.clip(np.rint((x + offset) / step), 0, how.largest)
            found = step * levels - offset
            error = np.square(found - x).sum(axis=0)
            kept, best = np.where(error < best, found, kept), np.minimum(error, best)
    as_searched = units[0] * begin[0] * searched - units[1] * begin[1]
    return np.where((begin[0] > 0) & (units[0] > 0), kept, as_searched).T.reshape(superblocks.shape)


@pytest.mark.parametrize(("form", "most", "share"), CASES, ids=["q2_k", "q4_k", "q5_k"])
@np.errstate(all="ignore")
def test_finds_what_numpy_finds(form, most, share) -> None:
    w = weights(256)
    found, expected = quantised(w, form), in_numpy(w.T, form, most).T
    assert np.mean(np.isclose(found, expected, rtol=1e-5, atol=1e-6)) > 0.99  # in f32 another fit may be as good
    errors = [np.square(values - w, dtype=np.float64).sum(axis=0) for values in (found, expected)]
    np.testing.assert_allclose(*errors, rtol=1e-2)


@pytest.mark.parametrize(("form", "most", "share"), CASES, ids=["q2_k", "q4_k", "q5_k"])
def test_loses_less_than_ggml(form, most, share) -> None:
    w = weights(700)  # with a cut superblock
    errors = [np.square(quantised(w, form, as_ggml) - w, dtype=np.float64).sum() for as_ggml in (False, True)]
    assert errors[0] < share * errors[1]
