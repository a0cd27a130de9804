"""What `spqt tune` has measured of a device, and what follows from it for a matrix: how its GEMV is divided (on a CPU
bands side by side, on a GPU threadgroups and simdgroups), and up to which density of active inputs skipping pays.

The time of a sparse product, its index collection included, is alpha + beta * density. One JSON file per device in the
user's cache folder; without it, or for shapes that are not in it, defaults hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import read_object
from spqt_ti.cache import cache_dir
from spqt_ti.errors import TuningError
from spqt_ti.kernels.shared.geometry import MOST_PANEL_BANDS
from spqt_ti.kernels.simt.splits import SPLITS, Split

FORMAT = 2
# Where nothing is known of the device, what was asked for is done: on the README's machine density 0.75 gains 5 to 28 %
# wherever the weights are, and above 0.9 it is not worth a list.
DEFAULT_MAX_DENSITY = 0.9
NOISE = 0.05  # by which sparse may be slower and is taken all the same: it was asked for, and timing is no better


@dataclass(frozen=True)
class TunedShape:
    """Measured microseconds of a matrix [rows, cols] as it is divided best: among `threads` workers of a CPU with
    `panel_bands` bands side by side, or by `split` on a GPU.
    """

    rows: int
    cols: int
    dense: float
    alpha: float
    beta: float
    threads: int | None = None
    panel_bands: int | None = None
    split: Split | None = None

    @classmethod
    def fit(
        cls, rows: int, cols: int, dense: float, sparse: Sequence[tuple[float, float]], **division: Any
    ) -> TunedShape:
        """From the dense time and (density, time) pairs of the sparse kernel: a least-squares line. `division`:
        threads and panel_bands, or split.
        """
        density, times = np.array(sparse).T
        beta, alpha = np.polyfit(density, times, 1)
        return cls(rows, cols, dense, float(alpha), float(beta), **division)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TunedShape:
        """From what `asdict` makes of it. Raises ValueError, TypeError or KeyError for what kernels do not do."""
        if not isinstance(fields, dict):
            raise ValueError("a shape that is no object")
        for name in ("rows", "cols", "threads", "panel_bands"):
            absent = fields.get(name) is None and name in ("threads", "panel_bands")
            if not absent and type(fields[name]) is not int:
                raise ValueError(f"{name} is {fields[name]!r:.80}, expected a whole number")
        for name in ("dense", "alpha", "beta"):
            if type(fields[name]) not in (int, float) or not math.isfinite(fields[name]):
                raise ValueError(f"{name} is {fields[name]!r:.80}, expected microseconds")
        split = Split(**fields["split"]) if fields["split"] is not None else None
        if split is not None and split not in SPLITS:
            raise ValueError(f"a split must be one of {', '.join(map(str, SPLITS))}, not {split}")
        # 8.0 equals 8, but kernels are made with whole numbers.
        shape = cls(**{**fields, "split": split and SPLITS[SPLITS.index(split)]})
        if split is None and not 1 <= (shape.panel_bands or 0) <= MOST_PANEL_BANDS:
            raise ValueError(f"panel_bands must be between 1 and {MOST_PANEL_BANDS}")
        return shape

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
    """Measurements of one device (see `Runtime.name`)."""

    device: str
    versions: dict[str, str]
    date: str
    shapes: tuple[TunedShape, ...] = ()

    def find(self, rows: int, cols: int, threads: int | None) -> TunedShape | None:
        """The measurement of this shape with this number of threads (None: on a GPU)."""
        wanted = (rows, cols, threads)
        return next((s for s in self.shapes if (s.rows, s.cols, s.threads) == wanted), None)

    def updated(self, shapes: Sequence[TunedShape], versions: dict[str, str], date: str) -> Tuning:
        """With `shapes` added; older measurements of the same shapes go."""
        new = {(s.rows, s.cols, s.threads) for s in shapes}
        kept = tuple(s for s in self.shapes if (s.rows, s.cols, s.threads) not in new)
        return Tuning(self.device, versions, date, kept + tuple(shapes))

    def save(self) -> Path:
        """Write as JSON, to a temporary name first; returns where. Raises TuningError where that fails."""
        path = tuning_path(self.device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1), encoding="utf-8")
        except OSError as error:
            raise TuningError(f"{path}: cannot write the tuning: {error}") from error
        return path

    @classmethod
    def load(cls, device: str) -> Tuning:
        """Read what `save` wrote; an empty one where there is no file. Raises TuningError for anything else."""
        path = tuning_path(device)
        if not path.is_file():
            return cls(device, {}, "")
        try:
            fields = read_object(path)
            if fields.pop("format") != FORMAT:
                raise ValueError("another format version")
            shapes = tuple(TunedShape.from_json(shape) for shape in fields.pop("shapes"))
            versions = fields.pop("versions")
            if not isinstance(versions, dict) or not all(
                isinstance(v, str) for v in (*versions.values(), *fields.values())
            ):
                raise ValueError("versions, device or date of another type")
            return cls(**fields, versions=versions, shapes=shapes)
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise TuningError(f"{path}: not a tuning ({error}); delete it, or run spqt tune again") from error


def tuning_path(device: str) -> Path:
    """Where a device's tuning is kept."""
    return cache_dir() / "tuning" / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"
