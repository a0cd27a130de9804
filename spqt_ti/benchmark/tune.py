"""Measure what the choice between dense and sparse rests on, and how a product is divided best."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from spqt_ti import __version__
from spqt_ti.atomic import locked
from spqt_ti.backend import Runtime, ti
from spqt_ti.benchmark.divisions import measure_divisions
from spqt_ti.benchmark.gemv_drivers import Zigzag, interleaved
from spqt_ti.benchmark.shapes import Shape
from spqt_ti.errors import TuningError
from spqt_ti.model.tuning import TunedShape, Tuning, tuning_path
from spqt_ti.progress import progress

PANEL_BANDS = (4, 8, 16, 32)
DENSITIES = (0.75, 0.5, 0.25)
TYPICAL = 0.5  # the density at which candidates are compared, together with dense


def tune_shapes(
    shapes: Sequence[Shape], runtime: Runtime, threads: int | None = None, rounds: int = 5
) -> Iterator[TunedShape]:
    """Measure each shape on weights that come from memory, divided in every way that may be good; yields the best.

    `runtime`: the one that is up; `threads`: of a CPU (default: all). Raises BackendError for a matrix that does not
    fit the device.
    """
    workers = runtime.workers(threads)
    for shape in progress(shapes, desc="tune", unit="shapes"):
        if workers is None:
            tuned = measure_divisions(shape, DENSITIES, TYPICAL, rounds)
        else:
            tuned = [_measure(shape, workers, bands, rounds) for bands in _useful(shape)]
        yield min(tuned, key=lambda candidate: candidate.dense + candidate.sparse_time(TYPICAL))


def keep(shapes: Sequence[TunedShape], device: str) -> Path:
    """Add to this device's file, or replace it where it is not one of this version; returns where it is. Raises
    TuningError where it cannot be written.
    """
    versions = {"spqt-ti": __version__, "taichi": ".".join(map(str, ti.__version__))}
    path = tuning_path(device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):  # what another process measures now is not to be lost
            try:
                before = Tuning.load(device)
            except TuningError:
                before = Tuning(device, {}, "")
            return before.updated(shapes, versions, date.today().isoformat()).save()
    except OSError as error:
        raise TuningError(f"{path}: cannot write the tuning: {error}") from error


def forget(device: str) -> str:
    """Remove this device's file; says what was done. Raises TuningError where that fails."""
    path = tuning_path(device)
    try:
        path.unlink()
    except FileNotFoundError:
        return f"{device}: nothing was measured, defaults hold"
    except OSError as error:
        raise TuningError(f"{path}: cannot be removed: {error}") from error
    return f"{path}: removed, defaults hold again"


def _useful(shape: Shape) -> list[int]:
    """Numbers of bands that differ for this shape."""
    bands = max(1, -(-shape[0] // 256))
    return [n for i, n in enumerate(PANEL_BANDS) if i == 0 or PANEL_BANDS[i - 1] < bands]


def _measure(shape: Shape, threads: int, bands: int, rounds: int) -> TunedShape:
    driver = Zigzag(*shape, threads, panel_bands=bands)
    runs: dict[float, Callable[[], None]] = {1.0: functools.partial(driver.run, "zigzag", 1.0)}
    for density in DENSITIES:
        runs[density] = functools.partial(driver.run, "full", density)
    times = {
        density: float(np.median(seconds)) / driver.turns * 1e6
        for density, seconds in interleaved(runs, rounds).items()
    }
    sparse = [(density, times[density]) for density in DENSITIES]
    return TunedShape.fit(shape, times[1.0], sparse, str(bands), threads)
