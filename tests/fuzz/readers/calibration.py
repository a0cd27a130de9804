"""Calibrations (JSON) and checkpoints of calibrations (.npz): members, headers and arrays changed."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz.mutate import json_text, raw_bytes

from spqt_ti.sparsity.capture import Magnitudes
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods import uniform
from spqt_ti.sparsity.methods.teal import from_arrays

DTYPES = ("<f8", "<f4", "<i8", "<u1", "|b1", "<U5", "|O", "<c16", "|V8", "<f9", "x")
SHAPES = ("()", "(1,)", "(2, 4)", "(10**12,)", "(-1,)", "(0,)", "(99999999999,)", "3", "(2**62, 2**62)", "('a',)")


def prepare(folder: Path) -> Callable[[random.Random], None]:
    kept = Checkpoint(folder / "kept", {"model": "m", "tokens": 300})
    kept.save("capture", {"places": np.array([3, 9]), "counts": np.array([1, 2]), "done": np.array(7)})
    kept.save("teal", {"0.effective": np.array([0, 0.1]), "0.errors": np.zeros(2), "0.sparsities": np.zeros((2, 4))})
    whole = {name: (folder / "kept" / f"{name}.npz").read_bytes() for name in ("capture", "teal")}
    quantiles = np.tile(np.linspace(0, 1, len(uniform.LEVELS), dtype=np.float32), (1, 4, 1))
    calibration = folder / "calibration.json"
    uniform.Calibration("m", "t", 300, quantiles).save(calibration)
    fields = json.loads(calibration.read_text())

    def feed(rng: random.Random) -> None:
        if rng.random() < 0.3:
            calibration.write_bytes(json_text(fields, rng))
            uniform.Calibration.load(calibration).policy(0.5)
            return
        name = rng.choice(("capture", "teal"))
        path = folder / "kept" / f"{name}.npz"
        path.write_bytes(raw_bytes(whole[name], rng) if rng.random() < 0.4 else _members(whole[name], rng))
        arrays = kept.load(name)
        if name == "capture":
            Magnitudes(2).restore(arrays)
        else:
            from_arrays(arrays)

    return feed


def _members(raw: bytes, rng: random.Random) -> bytes:
    """The archive with the arrays of some members, or their headers, replaced."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as before:
        how = rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))
        with zipfile.ZipFile(made, "w", how) as after:
            for entry in before.namelist():
                content = before.read(entry)
                what = rng.randrange(6)
                if what == 0:
                    header = (
                        f"{{'descr': '{rng.choice(DTYPES)}', 'fortran_order': False, 'shape': {rng.choice(SHAPES)}}}"
                    )
                    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
                elif what == 1:
                    values = rng.choice((np.array(-1), np.array([2**40]), np.full((2, 4), np.nan), np.array("x")))
                    written = io.BytesIO()
                    np.save(written, values)
                    content = written.getvalue()
                if what != 2:
                    after.writestr(entry, content)
    return made.getvalue()
