"""Matrices of any scheme that use the whole range of every field, and what their products should be in float64."""

from __future__ import annotations

import numpy as np
import q4_k_matrices
from q4_k_matrices import Matrix

from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q6_k
from spqt_ti.formats.scheme import Scheme
from spqt_ti.formats.schemes import SCHEMES


def random_matrix(rows: int, cols: int, layout: str, scheme: Scheme, seed: int = 0) -> Matrix:
    """Random quants and scales; some super-scales zero or denormal in f16."""
    if scheme.name == "q4_k":
        return q4_k_matrices.random_matrix(rows, cols, layout, seed)
    rng = np.random.default_rng(seed)
    count = _superblocks(rows, cols, layout, scheme)
    d = (rng.uniform(0.0005, 0.002, count) * rng.choice([1.0, -1.0, 0.0, 0.01], count)).astype(np.float16)
    if scheme.name == "q6_k":
        scales = rng.integers(-128, 128, (count, 16)).astype(np.int8)
        return _matrix(rows, cols, layout, scheme, q6_k.pack(d, scales, rng.integers(0, 64, (count, 256), np.uint8)))
    return _matrix(rows, cols, layout, scheme, _q8_0(d, rng.integers(-128, 128, (count, 32))))


def integer_matrix(rows: int, cols: int, layout: str, scheme: Scheme, seed: int = 0) -> Matrix:
    """Every weight is a small integer, so that sums of them are exact in f32."""
    if scheme.name == "q4_k":
        return q4_k_matrices.integer_matrix(rows, cols, layout, seed)
    rng = np.random.default_rng(seed)
    count = _superblocks(rows, cols, layout, scheme)
    d = np.ones(count, np.float16)
    if scheme.name == "q6_k":
        quants, scales = rng.integers(0, 64, (count, 256), np.uint8), rng.integers(-3, 4, (count, 16)).astype(np.int8)
        return _matrix(rows, cols, layout, scheme, q6_k.pack(d, scales, quants))
    return _matrix(rows, cols, layout, scheme, _q8_0(d, rng.integers(-128, 128, (count, 32))))


def _q8_0(d: np.ndarray, quants: np.ndarray) -> np.ndarray:
    return np.concatenate([d[:, None].view(np.uint8), quants.astype(np.int8).view(np.uint8)], axis=1)


def _superblocks(rows: int, cols: int, layout: str, scheme: Scheme) -> int:
    """Superblocks of a matrix whose last band is whole."""
    if layout == "row":
        return rows * -(-cols // scheme.values)
    return cols * -(-rows // layouts.BAND) * (layouts.BAND // scheme.values)


def _matrix(rows: int, cols: int, layout: str, scheme: Scheme, superblocks: np.ndarray) -> Matrix:
    """The matrix that stores these superblocks. What pads it is not zero."""
    data = superblocks.reshape(-1)
    if layout == "zigzag":
        columns = superblocks.reshape(-1, layouts.BAND // scheme.values * scheme.bytes)
        kept = layouts._tail_bytes(rows, scheme) if rows % layouts.BAND else np.arange(columns.shape[1])
        data = np.concatenate([columns[:-cols].reshape(-1), columns[-cols:, kept].reshape(-1)])
    weights = layouts.dequantize_matrix(data, rows, cols, layout, scheme).astype(np.float64)
    return Matrix(data, weights, np.abs(weights), np.abs(weights))


ALL = tuple(SCHEMES.values())
