"""Texts to calibrate and evaluate on: any bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import raw_bytes

from spqt_ti.texts import paragraph_hashes, read_text


def prepare(folder: Path) -> Callable[[random.Random], None]:
    path = folder / "t.txt"
    whole = (
        "Ünïcode, naïve café, 日本語, and numbers.\r\n\r\nA second paragraph of more than forty characters.\n" * 9
    ).encode()

    def feed(rng: random.Random) -> None:
        path.write_bytes(raw_bytes(whole, rng) if rng.random() < 0.8 else rng.randbytes(rng.randrange(200)))
        paragraph_hashes(read_text(path))

    return feed
