"""What `spqt tune` keeps, then asked for choices."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import json_text

from spqt_ti.model.tuning import TunedShape, Tuning, tuning_path


def prepare(folder: Path) -> Callable[[random.Random], None]:
    shapes = (
        TunedShape(192, 64, 3.0, 1.0, 2.0, "1", threads=2),
        TunedShape(192, 64, 3.0, 1.0, 2.0, "8x2"),
    )
    path = Tuning("a device", {"taichi": "1"}, "2026-01-01", shapes).save()
    whole = json.loads(path.read_text())

    def feed(rng: random.Random) -> None:
        tuning_path("a device").write_bytes(json_text(whole, rng))
        tuning = Tuning.load("a device")
        for threads in (2, None):
            found = tuning.find(192, 64, threads)
            if found is not None:
                found.max_density, found.sparse_time(0.5)
        tuning.updated(shapes, {}, "now").save()

    return feed
