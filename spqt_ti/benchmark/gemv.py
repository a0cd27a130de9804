"""Speed of the five Q4_K GEMVs: row layout dense and B1, zigzag dense, B2 and full (with its index collection).

A launch goes once through as many copies of the matrix as exceed the last-level cache (or many times through one that
stays in it), with all workers meeting after each, as in a token. Rounds are interleaved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spqt_ti.benchmark.bandwidth import read_bandwidth
from spqt_ti.benchmark.gemv_drivers import Rows, Zigzag, collect_seconds, interleaved
from spqt_ti.benchmark.shapes import Shape

KERNELS = ("row", "b1", "zigzag", "b2", "full")
SPARSE = ("b1", "b2", "full")


@dataclass(frozen=True)
class GemvRow:
    """One line of the table. Times are medians over rounds of microseconds per product, `spread` (p80 - p20) / 2.

    `collect_microseconds` is part of the full kernel's time. Bytes are those of the active columns (zigzag) or of the
    matrix (row layout), `read_fraction` of the read bandwidth measured in the same run.
    """

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
    speedup_over_row: float | None
    speedup_over_dense: float | None


def measure_gemv(
    shapes: Sequence[Shape],
    densities: Sequence[float],
    threads: int,
    rounds: int = 5,
    kernels: Sequence[str] = KERNELS,
    warm: bool = False,
) -> list[GemvRow]:
    """Time `kernels` on each shape; the sparse ones at each density below 1. `warm`: weights stay in the cache.

    The read bandwidth is the better of two measurements, before and after: a shared machine has slow moments.
    """
    before = read_bandwidth(threads)
    measure = functools.partial(
        _measure_shape, densities=densities, threads=threads, rounds=rounds, kernels=kernels, warm=warm
    )
    rows = [row for shape in shapes for row in measure(shape)]
    ceiling = max(before, read_bandwidth(threads)) / 1e9
    return [replace(row, read_fraction=row.gigabytes_per_second / ceiling) for row in rows]


def _measure_shape(
    shape: Shape,
    densities: Sequence[float],
    threads: int,
    rounds: int,
    kernels: Sequence[str],
    warm: bool,
) -> list[GemvRow]:
    drivers: dict[str, Rows | Zigzag] = {}
    if {"row", "b1"} & set(kernels):
        drivers["row"] = drivers["b1"] = Rows(*shape, threads, warm)
    if {"zigzag", "b2", "full"} & set(kernels):
        drivers["zigzag"] = drivers["b2"] = drivers["full"] = Zigzag(*shape, threads, warm)
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
                speedup_over_row=_ratio(medians.get(("row", 1.0)), seconds),
                speedup_over_dense=_ratio(medians.get(("zigzag", 1.0)), seconds),
            )
        )
    return rows


def _ratio(base: float | None, seconds: float) -> float | None:
    return None if base is None else base / seconds


def markdown(rows: Sequence[GemvRow]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| rows x cols | kernel | density | threads | us | of that collection | GB/s | of read bandwidth | over row "
        "| over zigzag |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        collection = f"{r.collect_microseconds:.1f}" if r.kernel == "full" else ""
        over = [f"{ratio:.2f}x" if ratio is not None else "" for ratio in (r.speedup_over_row, r.speedup_over_dense)]
        lines.append(
            f"| {r.rows}x{r.cols} | {r.kernel} | {r.density:.0%} | {r.threads} | {r.microseconds:.1f} ± {r.spread:.1f} "
            f"| {collection} | {r.gigabytes_per_second:.1f} | {r.read_fraction:.0%} | {over[0]} | {over[1]} |"
        )
    return "\n".join(lines)
