"""Matrices of any scheme that use the whole range of every field, and what their products should be in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import q4_k_matrices
from q4_k_matrices import Matrix

from spqt_ti.formats import layout as layouts
from spqt_ti.formats import q2_k, q3_k, q5_k, q6_k
from spqt_ti.formats.affine import Fields
from spqt_ti.formats.scheme import Scheme
from spqt_ti.formats.schemes import SCHEMES


def random_matrix(rows: int, cols: int, layout: str, scheme: Scheme, seed: int = 0) -> Matrix:
    """Random quants and scales; some super-scales zero or denormal in f16."""
    if scheme.name == "q4_k":
        return q4_k_matrices.random_matrix(rows, cols, layout, seed)
    rng = np.random.default_rng(seed)
    count = _superblocks(rows, cols, layout, scheme)
    d = (rng.uniform(0.0005, 0.002, count) * rng.choice([1.0, -1.0, 0.0, 0.01], count)).astype(np.float16)
    if scheme.name in WITH_MINIMA:
        kind = WITH_MINIMA[scheme.name]
        multiples = rng.integers(0, kind.multiples, (2, count, kind.sub_blocks), np.uint8)
        quants = rng.integers(0, kind.quants, (count, 256), np.uint8)
        fields = Fields(np.abs(d), np.abs(rng.permutation(d)), *multiples, quants)
        added = kind.pack(replace(fields, dmin=-fields.dmin))
        return _matrix(rows, cols, layout, scheme, kind.pack(fields), added)
    if scheme.name in SIGNED:
        pack, scales, quants = SIGNED[scheme.name]
        multiples = rng.integers(-scales, scales, (count, 16)).astype(np.int8)
        return _matrix(rows, cols, layout, scheme, pack(d, multiples, rng.integers(0, quants, (count, 256), np.uint8)))
    return _matrix(rows, cols, layout, scheme, _q8_0(d, rng.integers(-128, 128, (count, 32))))


def integer_matrix(rows: int, cols: int, layout: str, scheme: Scheme, seed: int = 0) -> Matrix:
    """Every weight is a small integer, so that sums of them are exact in f32."""
    if scheme.name == "q4_k":
        return q4_k_matrices.integer_matrix(rows, cols, layout, seed)
    rng = np.random.default_rng(seed)
    count = _superblocks(rows, cols, layout, scheme)
    d = np.ones(count, np.float16)
    if scheme.name in WITH_MINIMA:
        kind = WITH_MINIMA[scheme.name]
        multiples = rng.integers(0, 4, (2, count, kind.sub_blocks), np.uint8)
        fields = Fields(d, d, *multiples, rng.integers(0, kind.quants, (count, 256), np.uint8))
        return _matrix(rows, cols, layout, scheme, kind.pack(fields))
    if scheme.name in SIGNED:
        pack, _, most = SIGNED[scheme.name]
        quants = rng.integers(0, most, (count, 256), np.uint8)
        return _matrix(rows, cols, layout, scheme, pack(d, rng.integers(-3, 4, (count, 16)).astype(np.int8), quants))
    return _matrix(rows, cols, layout, scheme, _q8_0(d, rng.integers(-128, 128, (count, 32))))


@dataclass(frozen=True)
class Kind:
    """A scheme whose values have minima: its `pack`, and bounds of its fields."""

    pack: Callable[[Fields], np.ndarray]
    sub_blocks: int
    multiples: int
    quants: int


WITH_MINIMA = {"q2_k": Kind(q2_k.pack, 16, 16, 4), "q5_k": Kind(q5_k.pack, 8, 64, 32)}
# `pack`, bounds of scales and of quants.
SIGNED = {"q3_k": (q3_k.pack, 32, 8), "q6_k": (q6_k.pack, 128, 64)}


def _q8_0(d: np.ndarray, quants: np.ndarray) -> np.ndarray:
    return np.concatenate([d[:, None].view(np.uint8), quants.astype(np.int8).view(np.uint8)], axis=1)


def _superblocks(rows: int, cols: int, layout: str, scheme: Scheme) -> int:
    """Superblocks of a matrix whose last band is whole."""
    if layout == "row":
        return rows * -(-cols // scheme.values)
    return cols * -(-rows // layouts.BAND) * (layouts.BAND // scheme.values)


def _matrix(
    rows: int, cols: int, layout: str, scheme: Scheme, superblocks: np.ndarray, added: np.ndarray | None = None
) -> Matrix:
    """The matrix that stores these superblocks. What pads it is not zero. `added`: the same with minima added."""
    data = _stored(rows, cols, layout, scheme, superblocks)
    weights = layouts.dequantize_matrix(data, rows, cols, layout, scheme).astype(np.float64)
    parts = np.abs(weights)
    if added is not None:
        parts = layouts.dequantize_matrix(_stored(rows, cols, layout, scheme, added), rows, cols, layout, scheme)
    return Matrix(data, weights, parts.astype(np.float64), np.abs(weights))


def _stored(rows: int, cols: int, layout: str, scheme: Scheme, superblocks: np.ndarray) -> np.ndarray:
    if layout == "row":
        return superblocks.reshape(-1)
    columns = superblocks.reshape(-1, layouts.BAND // scheme.values * scheme.bytes)
    kept = layouts._tail_bytes(rows, scheme) if rows % layouts.BAND else np.arange(columns.shape[1])
    return np.concatenate([columns[:-cols].reshape(-1), columns[-cols:, kept].reshape(-1)])


ALL = tuple(SCHEMES.values())
