"""Checkpoints of calibrations (.npz): members, headers and arrays changed."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
from fuzz.mutate import raw_bytes
from fuzz.target import Target, named, overwrite, parts

from spqt_ti.sparsity.capture import Magnitudes
from spqt_ti.sparsity.checkpoint import Checkpoint
from spqt_ti.sparsity.methods.teal import from_arrays

DTYPES = ("<f8", "<f4", "<i8", "<u1", "|b1", "<U5", "|O", "<c16", "|V8", "<f9", "x")
SHAPES = ("()", "(1,)", "(2, 4)", "(10**12,)", "(-1,)", "(0,)", "(99999999999,)", "3", "(2**62, 2**62)", "('a',)")


def prepare(folder: Path) -> Target:
    kept = Checkpoint(folder / "kept", {"model": "m", "tokens": 300})
    kept.save("capture", {"places": np.array([3, 9]), "counts": np.array([1, 2]), "done": np.array(7)})
    kept.save("teal", {"0.effective": np.array([0, 0.1]), "0.errors": np.zeros(2), "0.sparsities": np.zeros((2, 4))})
    seeds = tuple(named(name, (folder / "kept" / f"{name}.npz").read_bytes()) for name in ("capture", "teal"))

    def mutate(raw: bytes, rng: random.Random) -> bytes:
        name, _, content = raw.partition(b"\n")
        if rng.random() < 0.5:
            return name + b"\n" + raw_bytes(content, rng)
        try:
            return name + b"\n" + _members(content, rng)
        except Exception:  # what was changed before is no archive any more, in one of many ways
            return name + b"\n" + raw_bytes(content, rng)

    def read(raw: bytes) -> None:
        name, content = parts(raw)
        overwrite(folder / "kept" / f"{name}.npz", content)
        arrays = kept.load(name)
        if name == "capture":
            Magnitudes(2).restore(arrays)
        else:
            from_arrays(arrays)

    return Target(seeds, mutate, read)


def _members(raw: bytes, rng: random.Random) -> bytes:
    """The archive with the arrays of some members, or their headers, replaced."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as before:
        how = rng.choice((zipfile.ZIP_STORED,) * 29 + (zipfile.ZIP_DEFLATED,))
        with zipfile.ZipFile(made, "w", how) as after:
            for entry in before.namelist():
                content = before.read(entry)
                what = rng.randrange(12)
                if what == 0:
                    content = _header(rng)
                elif what == 1:
                    content = _array(
                        rng.choice((np.array(-1), np.array([2**40]), np.full((2, 4), np.nan), np.array("x")))
                    )
                elif what == 2:
                    content = raw_bytes(content, rng)
                if what != 3:
                    after.writestr(entry, content)
    return made.getvalue()


def _header(rng: random.Random) -> bytes:
    text = f"{{'descr': '{rng.choice(DTYPES)}', 'fortran_order': False, 'shape': {rng.choice(SHAPES)}}}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


def _array(values: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, values)
    return written.getvalue()
