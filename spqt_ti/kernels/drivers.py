"""The kernels of tests and comparisons on whatever device runs: workers or groups of threads."""

from collections.abc import Callable

import numpy as np

from spqt_ti.backend import runtime
from spqt_ti.formats import q4_k
from spqt_ti.formats.scheme import Scheme
from spqt_ti.kernels.cpu import collect, gemv, row_gemv
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.kernels.shared.geometry import ZigzagShape
from spqt_ti.kernels.simt import collect as simt_collect
from spqt_ti.kernels.simt import gemv as simt_gemv
from spqt_ti.kernels.simt import row_gemv as simt_row_gemv
from spqt_ti.kernels.simt.row_words import RowWords
from spqt_ti.kernels.simt.zigzag import ZigzagWords

# (x f32 [cols], active i32 or None for all) -> y f32 [rows]
Gemv = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
# (x f32 [cols], threshold) -> i32, ascending
Collector = Callable[[np.ndarray, float], np.ndarray]
# (x f32 [cols], threshold or None for all inputs) -> y f32 [rows]
ThresholdGemv = Callable[[np.ndarray, float | None], np.ndarray]


def zigzag_gemv(
    data: np.ndarray, rows: int, cols: int, exact: bool = True, scheme: Scheme = q4_k.SCHEME
) -> Gemv:  # fmt: skip
    """The GEMV of a zigzag matrix (u8 [nbytes]): in f32, or in 16 bits where CPU and scheme can unless `exact`."""
    if runtime().capabilities.groups:
        return simt_gemv.ZigzagGemv(data, ZigzagWords(rows, cols, scheme))
    return gemv.ZigzagGemv(data, ZigzagShape(rows, cols), runtime().threads, exact, decoder_of(scheme))


def zigzag_threshold_gemv(
    data: np.ndarray, rows: int, cols: int, exact: bool = True, scheme: Scheme = q4_k.SCHEME
) -> ThresholdGemv:  # fmt: skip
    """Collection, then the GEMV over the active inputs alone, of a zigzag matrix (u8 [nbytes])."""
    multiply, collect_active = zigzag_gemv(data, rows, cols, exact, scheme), collector(cols)

    def collect_and_multiply(x: np.ndarray, threshold: float | None) -> np.ndarray:
        return multiply(x, None if threshold is None else collect_active(x, threshold))

    return collect_and_multiply


def row_threshold_gemv(
    data: np.ndarray, rows: int, cols: int, exact: bool = True, scheme: Scheme = q4_k.SCHEME
) -> ThresholdGemv:  # fmt: skip
    """The GEMV of a row-layout matrix (u8 [nbytes]); it skips 16 inputs where all of them are inactive."""
    if runtime().capabilities.groups:
        multiply = simt_row_gemv.RowGemv(data, RowWords(rows, cols, scheme), skips=True)
        return lambda x, threshold: multiply(x, -1.0 if threshold is None else threshold)
    return row_gemv.RowGemv(data, rows, cols, runtime().threads, exact, decoder_of(scheme))


def collector(cols: int) -> Collector:
    """The index collector of `cols` inputs."""
    if runtime().capabilities.groups:
        return simt_collect.Collector(cols)
    return collect.collect_active
