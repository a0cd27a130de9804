"""Speed of the five GEMVs: row layout dense and B1, zigzag dense, B2 and full (with its index collection).

Other schemes than Q4_K have three: both dense ones and full; B1 and B2 are Q4_K's.
A launch goes once through as many copies of the matrix as exceed the last-level cache (or many times through one that
stays in it), with all workers meeting after each, as in a token. Rounds are interleaved.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spqt_ti.benchmark.bandwidth import read_bandwidth
from spqt_ti.benchmark.gemv_drivers import Rows, Zigzag, collect_seconds, interleaved
from spqt_ti.benchmark.shapes import Shape
from spqt_ti.formats.schemes import SCHEMES
from spqt_ti.kernels.cpu.schemes import decoder_of
from spqt_ti.progress import progress
from spqt_ti.tables import Table

KERNELS = ("row", "b1", "zigzag", "b2", "full")
SPARSE = ("b1", "b2", "full")
BASELINES = ("b1", "b2")  # of Q4_K alone


@dataclass(frozen=True)
class GemvRow:
    """One line of the table. Times are medians over rounds of microseconds per product, `spread` (p80 - p20) / 2.

    `collect_microseconds` is part of the full kernel's time. Bytes are those of the active columns (zigzag) or of the
    matrix (row layout), `read_fraction` of the read bandwidth measured in the same run.
    """

    scheme: str
    rows: int
    cols: int
    kernel: str
    density: float
    threads: int
    microseconds: float
    spread: float
    collect_microseconds: float
    gigabytes_per_second: float
    read_fraction: float
    speedup_over_row: float
    speedup_over_dense: float


def measure_gemv(
    shapes: Sequence[Shape],
    densities: Sequence[float],
    threads: int,
    rounds: int = 5,
    kernels: Sequence[str] = KERNELS,
    warm: bool = False,
    schemes: Sequence[str] = ("q4_k",),
) -> list[GemvRow]:
    """Time `kernels` on each shape in each scheme, the sparse ones at each density below 1, and always the dense ones,
    which they are compared with. `warm`: weights stay in the cache. B1 and B2 run in Q4_K alone.

    The read bandwidth is the better of two measurements, before and after: a shared machine has slow moments.
    """
    kernels = [kernel for kernel in KERNELS if kernel in kernels or kernel not in SPARSE]
    before = read_bandwidth(threads)
    measure = functools.partial(
        _measure_shape, densities=densities, threads=threads, rounds=rounds, kernels=kernels, warm=warm
    )
    cases = list(itertools.product(schemes, shapes))
    rows = [row for case in progress(cases, desc="gemv", unit="shapes") for row in measure(*case)]
    ceiling = max(before, read_bandwidth(threads)) / 1e9
    return [replace(row, read_fraction=row.gigabytes_per_second / ceiling) for row in rows]


def _measure_shape(
    scheme: str,
    shape: Shape,
    densities: Sequence[float],
    threads: int,
    rounds: int,
    kernels: Sequence[str],
    warm: bool,
) -> list[GemvRow]:
    decoder = decoder_of(SCHEMES[scheme])
    in_rows, in_zigzag = Rows(*shape, threads, warm, decoder), Zigzag(*shape, threads, warm, decoder=decoder)
    kernels = [kernel for kernel in kernels if scheme == "q4_k" or kernel not in BASELINES]
    drivers: dict[str, Rows | Zigzag] = {
        "row": in_rows,
        "b1": in_rows,
        "zigzag": in_zigzag,
        "b2": in_zigzag,
        "full": in_zigzag,
    }
    runs: dict[tuple[str, float], Callable[[], None]] = {}
    for kernel in kernels:
        for density in [d for d in densities if d < 1] if kernel in SPARSE else [1.0]:
            runs[kernel, density] = functools.partial(drivers[kernel].run, kernel, density)
    times = interleaved(runs, rounds)
    collecting = collect_seconds(shape[1]) if "full" in kernels else 0.0
    medians = {key: float(np.median(t)) / drivers[key[0]].turns for key, t in times.items()}
    rows = []
    for (kernel, density), seconds in medians.items():
        low, high = np.quantile(times[kernel, density], [0.2, 0.8]) / drivers[kernel].turns
        speed = drivers[kernel].read_bytes(kernel, density) / seconds
        rows.append(
            GemvRow(
                scheme=scheme,
                rows=shape[0],
                cols=shape[1],
                kernel=kernel,
                density=density,
                threads=threads,
                microseconds=seconds * 1e6,
                spread=float(high - low) / 2 * 1e6,
                collect_microseconds=collecting * 1e6 if kernel == "full" else 0.0,
                gigabytes_per_second=speed / 1e9,
                read_fraction=0.0,  # known at the end
                speedup_over_row=medians["row", 1.0] / seconds,
                speedup_over_dense=medians["zigzag", 1.0] / seconds,
            )
        )
    return rows


def table(rows: Sequence[GemvRow]) -> Table:
    """The rows as a table."""
    several = len({row.scheme for row in rows}) > 1
    titles = [
        *(["scheme"] if several else []),
        "rows x cols",
        "kernel",
        "density",
        "us",
        "collect us",
        "GB/s",
        "of read bandwidth",
        "over row",
        "over zigzag",
    ]
    return Table(
        titles,
        [
            [
                *([r.scheme] if several else []),
                f"{r.rows}x{r.cols}", r.kernel, f"{r.density:.0%}", microseconds(r.microseconds, r.spread),
                f"{r.collect_microseconds:.1f}" if r.kernel == "full" else "", f"{r.gigabytes_per_second:.1f}",
                f"{r.read_fraction:.0%}", f"{r.speedup_over_row:.2f}x", f"{r.speedup_over_dense:.2f}x",
            ]
            for r in rows
        ],
    )  # fmt: skip


def microseconds(median: float, spread: float) -> str:
    """With a decimal where it says something."""
    digits = 1 if median < 1000 else 0
    return f"{median:.{digits}f} ± {spread:.{digits}f}"
