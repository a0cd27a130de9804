"""The folder of an interrupted GPTQ.

Digests are right for most inputs: with wrong ones nothing behind them would be read.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path

import numpy as np
from fuzz.mutate import raw_bytes
from fuzz.target import Folder, Target, named, parts

from spqt_ti.convert.finished_layers import FinishedLayers

MADE_OF = {"seed": 1}
SHAPE = (2, 3, 4)
DTYPES = ("<f8", "<f4", "<i8", "<u1", "|b1", "<U5", "|O", "<c16", "|V8", "<f9", "x")
SHAPES = ("()", "(1,)", "(2, 3)", "(10**12,)", "(-1,)", "(0,)", "(99999999999,)", "3", "(2**62, 2**62)", "('a',)")


def prepare(folder: Path) -> Target:
    kept = folder / "kept"
    finished = FinishedLayers(kept, MADE_OF)
    finished.begin([[1, 2, 3], [4, 5, 6]])
    finished.add([np.arange(5, dtype=np.uint8)] * 4, np.ones(SHAPE, np.float32))
    files = Folder(kept)
    seeds = tuple(named(name, content) for name, content in files.whole.items())

    def mutate(raw: bytes, rng: random.Random) -> bytes:
        name, _, content = raw.partition(b"\n")
        data = content[:-32]
        if rng.random() < 0.4:
            data = _array(rng)
        if rng.random() < 0.6:
            data = raw_bytes(data, rng, 128)
        digest = hashlib.sha256(f"{name.decode()} {json.dumps(MADE_OF, sort_keys=True)}".encode() + data).digest()
        return name + b"\n" + data + (digest if rng.random() < 0.95 else content[-32:])

    def read(raw: bytes) -> None:
        files.put(*parts(raw))
        found = FinishedLayers(kept, MADE_OF)
        found.windows()
        found.matrices(0)
        found.states(SHAPE)

    return Target(seeds, mutate, read)


def _array(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        text = f"{{'descr': '{rng.choice(DTYPES)}', 'fortran_order': False, 'shape': {rng.choice(SHAPES)}}}"
        return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)
    made = io.BytesIO()
    arrays = np.array(-1), np.array([2**40, -(2**40), 5, 15]), np.full(SHAPE, np.nan), np.zeros(20, np.uint8)
    np.save(made, rng.choice(arrays))
    return made.getvalue()
