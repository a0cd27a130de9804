"""The kernels of tests and comparisons on whatever device runs: workers or groups of threads."""

from collections.abc import Callable

import numpy as np

from spqt_ti.backend import runtime
from spqt_ti.kernels.cpu import collect, gemv
from spqt_ti.kernels.shared.geometry import ZigzagShape
from spqt_ti.kernels.simt import collect as simt_collect
from spqt_ti.kernels.simt import gemv as simt_gemv
from spqt_ti.kernels.simt.zigzag import ZigzagWords

# (x f32 [cols], active i32 or None for all) -> y f32 [rows]
Gemv = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
# (x f32 [cols], threshold) -> i32, ascending
Collector = Callable[[np.ndarray, float], np.ndarray]


def zigzag_gemv(data: np.ndarray, rows: int, cols: int) -> Gemv:
    """The GEMV, in f32 throughout, of a zigzag matrix (u8 [nbytes])."""
    if runtime().capabilities.groups:
        return simt_gemv.ZigzagGemv(data, ZigzagWords(rows, cols))
    return gemv.ZigzagGemv(data, ZigzagShape(rows, cols), runtime().threads, exact=True)


def collector(cols: int) -> Collector:
    """The index collector of `cols` inputs."""
    if runtime().capabilities.groups:
        return simt_collect.Collector(cols)
    return collect.collect_active
