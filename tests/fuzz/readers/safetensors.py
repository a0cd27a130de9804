"""safetensors files of a Hugging Face directory: the header's JSON and its length changed."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.mutate import json_bytes, raw_bytes
from fuzz.target import CONFIG, Target, overwrite, weights
from tiny_models import write_huggingface

from spqt_ti.sources.huggingface import read_header


def prepare(folder: Path) -> Target:
    path = write_huggingface(folder / "m", CONFIG, weights(), dtype="bf16") / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    rest = len(raw) - 8 - size

    def mutate(head: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return raw_bytes(head, rng)
        text = json_bytes(head[8:], rng)
        lengths = (0, 2**63, 2**31, len(text) + 1, len(raw), len(text) - 1)
        claimed = len(text) if rng.random() < 0.9 else max(0, rng.choice(lengths))
        return claimed.to_bytes(8, "little") + text

    def read(head: bytes) -> None:
        overwrite(path, head, len(head) + rest)
        for stored in read_header(path).values():
            if not stored.problem:
                stored.load()

    return Target((raw[: 8 + size],), mutate, read)
