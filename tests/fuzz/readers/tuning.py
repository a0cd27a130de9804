"""What `spqt tune` keeps, then asked for choices."""

from __future__ import annotations

import json
from pathlib import Path

from fuzz.mutate import json_bytes
from fuzz.target import Target, overwrite

from spqt_ti.model.tuning import TunedShape, Tuning, tuning_path

SHAPES = TunedShape(192, 64, 3.0, 1.0, 2.0, "1", threads=2), TunedShape(192, 64, 3.0, 1.0, 2.0, "8x2")


def prepare(folder: Path) -> Target:
    del folder  # the cache is there
    path = Tuning("a device", {"taichi": "1"}, "2026-01-01", SHAPES).save()
    assert path == tuning_path("a device")
    old = {"rows": 8, "cols": 8, "dense": 1.0, "alpha": 1.0, "beta": 1.0, "threads": None, "panel_bands": 4}
    shapes = [old | {"split": None}, old | {"split": {"groups": 8, "simdgroups": 2}}]
    of_format_2 = {"format": 2, "device": "a device", "versions": {}, "date": "", "shapes": shapes}

    def read(raw: bytes) -> None:
        overwrite(path, raw)
        tuning = Tuning.load("a device")
        for threads in (2, None):
            found = tuning.find(192, 64, threads)
            if found is not None:
                found.max_density, found.sparse_time(0.5)
        json.dumps([shape.division for shape in tuning.updated(SHAPES, {}, "now").shapes])

    return Target((path.read_bytes(), json.dumps(of_format_2).encode()), json_bytes, read)
