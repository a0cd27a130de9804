"""What `spqt tune` has measured of a device, and what follows from it for a matrix: how its GEMV is divided (a text
that only the engine reads, see `EngineKind`), and up to which density of active inputs skipping pays.

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
from spqt_ti.errors import CacheError, TuningError

FORMAT = 3  # 2, which is still read, had fields of both engines
# Where nothing is known of the device, what was asked for is done: on the README's machine density 0.75 gains 5 to 28 %
# wherever the weights are, and above 0.9 it is not worth a list.
DEFAULT_MAX_DENSITY = 0.9
NOISE = 0.05  # by which sparse may be slower and is taken all the same: it was asked for, and timing is no better


@dataclass(frozen=True)
class TunedShape:
    """Measured microseconds of a matrix [rows, cols] as it is divided best, on a CPU among `threads` workers."""

    rows: int
    cols: int
    dense: float
    alpha: float
    beta: float
    division: str
    threads: int | None = None

    @classmethod
    def fit(
        cls,
        shape: tuple[int, int],
        dense: float,
        sparse: Sequence[tuple[float, float]],
        division: str,
        threads: int | None = None,
    ) -> TunedShape:
        """From the dense time and (density, time) pairs of the sparse kernel: a least-squares line."""
        density, times = np.array(sparse).T
        beta, alpha = np.polyfit(density, times, 1)
        return cls(*shape, dense, float(alpha), float(beta), division, threads)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TunedShape:
        """From what `asdict` makes of it. Raises ValueError, TypeError or KeyError for anything else."""
        for name in ("rows", "cols", "threads"):
            absent = fields.get(name) is None and name == "threads"
            if not absent and type(fields[name]) is not int:
                raise ValueError(f"{name} is {fields[name]!r:.80}, expected a whole number")
        for name in ("dense", "alpha", "beta"):
            if type(fields[name]) not in (int, float) or not math.isfinite(fields[name]):
                raise ValueError(f"{name} is {fields[name]!r:.80}, expected microseconds")
        if not isinstance(fields["division"], str):
            raise ValueError(f"division is {fields['division']!r:.80}, expected a text")
        return cls(**fields)

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
        """Read what `save` wrote; an empty one where there is no file, or no cache folder.

        Raises TuningError for anything else.
        """
        try:
            path = tuning_path(device)
        except CacheError:
            return cls(device, {}, "")
        if not path.is_file():
            return cls(device, {}, "")
        try:
            fields = read_object(path)
            version = fields.pop("format")
            if version not in (2, FORMAT):
                raise ValueError("another format version")
            stored = fields.pop("shapes")
            if not isinstance(stored, list) or not all(isinstance(shape, dict) for shape in stored):
                raise ValueError("shapes are no list of objects")
            shapes = tuple(TunedShape.from_json(_of_format_2(shape) if version == 2 else shape) for shape in stored)
            versions = fields.pop("versions")
            if not isinstance(versions, dict) or not all(
                isinstance(v, str) for v in (*versions.values(), *fields.values())
            ):
                raise ValueError("versions, device or date of another type")
            return cls(**fields, versions=versions, shapes=shapes)
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise TuningError(f"{path}: not a tuning ({error}); delete it, or run spqt tune again") from error


def _of_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of format 3."""
    bands, split = fields.pop("panel_bands"), fields.pop("split")
    return {**fields, "division": str(bands) if split is None else f"{split['groups']}x{split['simdgroups']}"}


def tuning_path(device: str) -> Path:
    """Where a device's tuning is kept."""
    return cache_dir() / "tuning" / f"{re.sub(r'[^A-Za-z0-9]+', '-', device).strip('-').lower()}.json"
