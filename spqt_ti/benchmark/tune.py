"""Measure what the choice between dense and sparse, and of bands side by side, rests on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from datetime import date

import numpy as np

from spqt_ti import __version__
from spqt_ti.backend import start, ti
from spqt_ti.benchmark.gemv_drivers import Zigzag, interleaved
from spqt_ti.benchmark.shapes import Shape
from spqt_ti.tuning import TunedShape, Tuning, tuning_path

PANEL_BANDS = (4, 8, 16, 32)
DENSITIES = (0.75, 0.5, 0.25)
# Of all copies of a matrix; half of what benchmarks take: Taichi keeps what it has once had, and a model has up to 16
# candidates.
COLD_BYTES = 256 << 20
TYPICAL = 0.5  # the density at which numbers of bands side by side are compared, together with dense


def tune_shapes(shapes: Sequence[Shape], threads: int, rounds: int = 5) -> Iterator[TunedShape]:
    """Measure each shape on weights that come from memory, over all numbers of bands side by side; yields the best."""
    start("cpu", threads)
    for shape in shapes:
        candidates = [_measure(shape, threads, bands, rounds) for bands in _useful(shape)]
        yield min(candidates, key=lambda tuned: tuned.dense + tuned.sparse_time(TYPICAL))


def keep(shapes: Sequence[TunedShape]) -> Tuning:
    """Add to this device's file; returns what it holds then. Raises TuningError where it cannot be read or written."""
    versions = {"spqt-ti": __version__, "taichi": ".".join(map(str, ti.__version__))}
    tuning = Tuning.load(tuning_path()).updated(shapes, versions, date.today().isoformat())
    tuning.save(tuning_path())
    return tuning


def _useful(shape: Shape) -> list[int]:
    """Numbers of bands that differ for this shape."""
    bands = max(1, -(-shape[0] // 256))
    return [n for i, n in enumerate(PANEL_BANDS) if i == 0 or PANEL_BANDS[i - 1] < bands]


def _measure(shape: Shape, threads: int, bands: int, rounds: int) -> TunedShape:
    driver = Zigzag(*shape, threads, panel_bands=bands, cold_bytes=COLD_BYTES)
    runs: dict[float, Callable[[], None]] = {1.0: functools.partial(driver.run, "zigzag", 1.0)}
    for density in DENSITIES:
        runs[density] = functools.partial(driver.run, "full", density)
    times = {
        density: float(np.median(seconds)) / driver.turns * 1e6
        for density, seconds in interleaved(runs, rounds).items()
    }
    return TunedShape.fit(*shape, threads, bands, times[1.0], [(density, times[density]) for density in DENSITIES])
