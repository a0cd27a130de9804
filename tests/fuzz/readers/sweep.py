"""Results of a sweep that are kept on disk, as `spqt allocate` goes on from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fuzz.mutate import json_bytes
from fuzz.target import Target, overwrite

from spqt_ti.parallel import results
from spqt_ti.parallel.study import ModelReference, Request


def prepare(folder: Path) -> Target:
    path = folder / "sweep.json"
    request = Request("study", ModelReference(str(folder), "m"), {"a": 1})
    results.save(path, request, {"[[0, 1, 0.5]]": np.array([0.25, 1.0]), "[[1, 1, 0.5]]": np.array([0.5, 2.0])})

    def read(raw: bytes) -> None:
        for value in results.load(overwrite(path, raw), request).values():
            assert np.isfinite(value).all()

    return Target((path.read_bytes(),), json_bytes, read)
