"""Curves of KL against bytes, then asked for recommendations as `spqt recommend` does."""

from __future__ import annotations

import shlex
from importlib import resources
from pathlib import Path

from fuzz.mutate import json_bytes
from fuzz.target import Target, overwrite

from spqt_ti.cli.recommend import commands_for
from spqt_ti.errors import SpqtError
from spqt_ti.evaluation.curve import Curve, frontier, kl_at_bytes, recommend


def prepare(folder: Path) -> Target:
    known = resources.files("spqt_ti").joinpath("data", "curve-smollm2-135m.json").read_bytes()
    whole = Curve.from_json(known)
    dense = [point for point in whole.points if not point.sparse_method][:2]
    sparse = [point for point in whole.points if point.sparse_method][:1]
    small = Curve(whole.model, whole.source_sha256, (whole.baseline(), *dense, *sparse), {"windows": 8})
    path = folder / "curve.json"

    def read(raw: bytes) -> None:
        curve = Curve.load(overwrite(path, raw))
        kl_at_bytes(frontier(curve.points), 1e8)
        for speed, kl in ((1.2, None), (None, 0.1)):
            try:
                point = recommend(curve, speed, kl)
            except SpqtError:
                continue
            for command in commands_for("m", point):
                assert shlex.join(shlex.split(command)).count(";") == 0  # a user copies it into a shell

    return Target((small.to_json().encode(),), json_bytes, read)
