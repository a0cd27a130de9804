"""Calibrations: quantiles of a model's inputs as JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fuzz.mutate import json_bytes
from fuzz.target import Target, overwrite

from spqt_ti.sparsity.methods import uniform


def prepare(folder: Path) -> Target:
    quantiles = np.full((1, 4, len(uniform.LEVELS)), 0.5, dtype=np.float32)  # short as JSON
    path = folder / "calibration.json"
    uniform.Calibration("m", "t", 300, quantiles).save(path)

    def read(raw: bytes) -> None:
        uniform.Calibration.load(overwrite(path, raw)).policy(0.5)

    return Target((path.read_bytes(),), json_bytes, read)
