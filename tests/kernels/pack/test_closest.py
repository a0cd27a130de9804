"""The search for the least squared error against the same search in NumPy, and against ggml's."""

import numpy as np
import pytest

from spqt_ti.convert.gptq import factored, quantize_columns
from spqt_ti.formats import affine, q2_k, q3_k, q4_k, q5_k, q6_k
from spqt_ti.formats import layout as layouts
from spqt_ti.kernels.pack import symmetric
from spqt_ti.kernels.pack.affine import AROUND, closest

COLS = 80  # more than a launch has
# Format, largest multiple, quants on the negative side where there are some, share of ggml's squared error.
CASES = [(q2_k, 15, 0, 0.9), (q3_k, 32, 4, 0.95), (q4_k, 63, 0, 0.97), (q5_k, 63, 0, 0.93), (q6_k, 128, 32, 0.95)]
NAMES = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]


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


def in_numpy_symmetric(superblocks: np.ndarray, form, multiples: int, quants: int) -> np.ndarray:
    """The same of sub-blocks without a minimum."""
    x = superblocks.reshape(-1, form.SUB_BLOCK).T
    most = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    scale, best = np.zeros_like(most), np.zeros_like(most)
    for sign in (-1, 1) if quants < 8 else (-1,):
        for number in range(symmetric.TRIES):
            divisor = sign * (quants + 0.1 * (number - symmetric.TRIES // 2)) / most
            level = np.clip(np.rint(divisor * x), -quants, quants - 1)
            sums = (x * level).sum(axis=0), (level * level).sum(axis=0)
            better = (sums[1] > 0) & (sums[0] ** 2 > best * sums[1])
            scale, best = np.where(better, sums[0] / sums[1], scale), np.where(better, sums[0] ** 2 / sums[1], best)
    parts = scale.reshape(len(superblocks), -1)
    largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=1)[:, None], axis=1)
    d = np.where(largest == 0, 0, largest / -multiples).astype(np.float16).astype(np.float32)
    begin = np.rint(np.where(largest == 0, 0, parts * -multiples / largest)).reshape(-1)
    unit = np.repeat(d[:, 0], parts.shape[1])
    error, kept = np.full(len(begin), np.inf), np.zeros_like(x)
    for a in range(-symmetric.AROUND, symmetric.AROUND + 1):
        step = unit * np.clip(begin + a, -multiples, multiples - 1)
        found = np.where(step == 0, 0, step * np.clip(np.rint(x / step), -quants, quants - 1))
        lost = np.square(found - x).sum(axis=0)
        kept, error = np.where(lost < error, found, kept), np.minimum(lost, error)
    return kept.T.reshape(superblocks.shape)


@pytest.mark.parametrize(("form", "most", "quants", "share"), CASES, ids=NAMES)
@np.errstate(all="ignore")
def test_finds_what_numpy_finds(form, most, quants, share) -> None:
    w = weights(256)
    found = quantised(w, form)
    expected = (in_numpy_symmetric(w.T, form, most, quants) if quants else in_numpy(w.T, form, most)).T
    assert np.mean(np.isclose(found, expected, rtol=1e-5, atol=1e-6)) > 0.9  # in f32 another d may come out
    errors = [np.square(values - w, dtype=np.float64).sum(axis=0) for values in (found, expected)]
    np.testing.assert_allclose(*errors, rtol=0.06)
    np.testing.assert_allclose(errors[0].sum(), errors[1].sum(), rtol=2e-3)


@pytest.mark.parametrize(("form", "most", "quants", "share"), CASES, ids=NAMES)
def test_loses_less_than_ggml(form, most, quants, share) -> None:
    w = weights(700)  # with a cut superblock
    errors = [np.square(quantised(w, form, as_ggml) - w, dtype=np.float64).sum() for as_ggml in (False, True)]
    assert errors[0] < share * errors[1]
