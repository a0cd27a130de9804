"""What `spqt tune` has measured of this device, and what follows from it for a matrix: how many bands stand side by
side, and up to which density of active inputs the sparse GEMV is the faster one.

The time of a sparse product, its index collection included, is alpha + beta * density. One JSON file per device in the
user's cache folder; without it, or for shapes that are not in it, defaults hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.cache import cache_dir
from spqt_ti.errors import TuningError
from spqt_ti.kernels.geometry import MOST_PANEL_BANDS

FORMAT = 1
# Where nothing is known of the device, what was asked for is done: on the README's machine density 0.75 gains 5 to 28 %
# wherever the weights are, and above 0.9 it is not worth a list.
DEFAULT_MAX_DENSITY = 0.9
NOISE = 0.05  # by which sparse may be slower and is taken all the same: it was asked for, and timing is no better


@dataclass(frozen=True)
class TunedShape:
    """Measured microseconds of a matrix [rows, cols] with `threads` workers; its best number of bands side by side."""

    rows: int
    cols: int
    threads: int
    panel_bands: int
    dense: float
    alpha: float
    beta: float

    @classmethod
    def fit(
        cls, rows: int, cols: int, threads: int, panel_bands: int, dense: float, sparse: Sequence[tuple[float, float]]
    ) -> TunedShape:
        """From the dense time and (density, time) pairs of the sparse kernel: a least-squares line."""
        density, times = np.array(sparse).T
        beta, alpha = np.polyfit(density, times, 1)
        return cls(rows, cols, threads, panel_bands, dense, float(alpha), float(beta))

    @property
    def max_density(self) -> float:
        """Density up to which the sparse kernel is not slower by more than the noise, between 0 and 1."""
        if self.beta <= 0:
            return 1.0 if self.alpha <= self.dense * (1 + NOISE) else 0.0
        return min(1.0, max(0.0, (self.dense * (1 + NOISE) - self.alpha) / self.beta))

    def sparse_time(self, density: float) -> float:
        """Microseconds of the sparse product."""
        return self.alpha + self.beta * density


@dataclass(frozen=True)
class Tuning:
    """Measurements of one device."""

    device: str
    versions: dict[str, str]
    date: str
    shapes: tuple[TunedShape, ...] = ()

    def find(self, rows: int, cols: int, threads: int) -> TunedShape | None:
        """The measurement of this shape with this number of threads."""
        wanted = (rows, cols, threads)
        return next((s for s in self.shapes if (s.rows, s.cols, s.threads) == wanted), None)

    def updated(self, shapes: Sequence[TunedShape], versions: dict[str, str], date: str) -> Tuning:
        """With `shapes` added; older measurements of the same shapes go."""
        new = {(s.rows, s.cols, s.threads) for s in shapes}
        kept = tuple(s for s in self.shapes if (s.rows, s.cols, s.threads) not in new)
        return Tuning(self.device, versions, date, kept + tuple(shapes))

    def save(self, path: Path) -> None:
        """Write as JSON, to a temporary name first. Raises TuningError where that fails."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise TuningError(f"{path}: cannot write the tuning: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @classmethod
    def load(cls, path: Path) -> Tuning:
        """Read what `save` wrote; an empty one where there is no file. Raises TuningError for anything else."""
        if not path.is_file():
            return cls(device_name(), {}, "")
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if fields.pop("format") != FORMAT:
                raise ValueError("another format version")
            shapes = tuple(TunedShape(**shape) for shape in fields.pop("shapes"))
            if not all(1 <= shape.panel_bands <= MOST_PANEL_BANDS for shape in shapes):
                raise ValueError(f"panel_bands must be between 1 and {MOST_PANEL_BANDS}")
            return cls(**fields, shapes=shapes)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise TuningError(f"{path}: not a tuning ({error}); delete it, or run spqt tune again") from error


def device_name() -> str:
    """The CPU's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def tuning_path() -> Path:
    """Where this device's tuning is kept."""
    return cache_dir() / "tuning" / f"{re.sub(r'[^A-Za-z0-9]+', '-', device_name()).strip('-').lower()}.json"
