"""Time a GPU's GEMV with several divisions of its bands (kernels/simt/division.py), on weights that come from memory.

All divisions multiply the same copies of the matrix. A first pass times each at one density; those that come near the
best are then measured, in interleaved rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from spqt_ti.backend import check_memory, runtime
from spqt_ti.benchmark.gemv_drivers import Key, interleaved, normal_x, stored_bytes, threshold_for
from spqt_ti.benchmark.gpu import device_seconds
from spqt_ti.benchmark.shapes import Shape
from spqt_ti.kernels.cpu.vectors import vectors_for
from spqt_ti.kernels.simt.division import Division, candidates
from spqt_ti.kernels.simt.gemv import ZigzagGemv
from spqt_ti.kernels.simt.submission import Submission
from spqt_ti.kernels.simt.zigzag import ZigzagWords
from spqt_ti.model.tuning import TunedShape

COLD_BYTES = 512 << 20  # of all copies of a matrix, or half of the device's memory where that is less
MOST_MEASURED = 4  # divisions after the first pass
NEAR = 1.25  # of the best time in it


def measure_divisions(shape: Shape, densities: Sequence[float], typical: float, rounds: int) -> list[TunedShape]:
    """Dense and at `densities`, of a matrix of this shape: the divisions that are near the best at density `typical`.

    Raises BackendError for a matrix that does not fit the device.
    """
    matrix = _Matrix(shape)
    first = matrix.microseconds({division: matrix.sparse(division, typical) for division in matrix.divisions}, rounds=1)
    nearest = sorted(first, key=first.__getitem__)[:MOST_MEASURED]
    divisions = [division for division in nearest if first[division] <= NEAR * first[nearest[0]]]
    runs = {(division, density): matrix.sparse(division, density) for division in divisions for density in densities}
    runs |= {(division, 1.0): matrix.dense(division) for division in divisions}
    times = matrix.microseconds(runs, rounds)
    return [
        TunedShape.fit(shape, times[division, 1.0], [(d, times[division, d]) for d in densities], str(division))
        for division in divisions
    ]


class _Matrix:
    """Copies of a matrix on the device, and products that go once through all of them."""

    def __init__(self, shape: Shape) -> None:
        words, limits = ZigzagWords(*shape), runtime().capabilities
        data = stored_bytes(*shape, "zigzag", warm=True)[0]
        self._copies = _copies(words, data.size)
        sizes = {"quants": 16 * words.quants, "headers": 16 * words.headers}
        check_memory(f"{shape[0]}x{shape[1]}", {name: self._copies * size for name, size in sizes.items()})
        self.divisions = candidates(words.bands, words.cols, limits.max_group, limits.processors)
        x = normal_x(words.cols, vectors_for(words.cols)).reshape(-1)[: words.cols]
        first = ZigzagGemv(data, words, self.divisions[0], copies=self._copies)
        self._drivers = {division: first.with_division(division) for division in self.divisions}
        for driver in self._drivers.values():
            driver.load(x)

    def dense(self, division: Division) -> Submission:
        """The product over all inputs."""
        driver = self._drivers[division]
        return Submission([driver.launch(copy) for copy in range(self._copies)], driver.arrays)

    def sparse(self, division: Division, density: float) -> Submission:
        """Collection and product at this density of active inputs."""
        driver = self._drivers[division]
        threshold = threshold_for(driver.shape.cols, density)
        return Submission([driver.launch_full(copy, threshold) for copy in range(self._copies)], driver.arrays)

    def microseconds(self, runs: Mapping[Key, Submission], rounds: int) -> dict[Key, float]:
        """Of one product of each, the median of `rounds` in turn, after one that does not count."""
        times = interleaved(runs, rounds, device_seconds)
        return {key: 1e6 * float(np.median(taken)) / self._copies for key, taken in times.items()}


def _copies(words: ZigzagWords, size: int) -> int:
    """As many as are cold, the device's arrays hold, and half of its memory."""
    limits = runtime().capabilities
    most = [-(-COLD_BYTES // size)]
    if limits.max_array_bytes is not None:
        most.append(limits.max_array_bytes // (16 * words.quants))
    if limits.memory is not None:
        most.append(limits.memory // 2 // size)
    return max(1, min(most))
