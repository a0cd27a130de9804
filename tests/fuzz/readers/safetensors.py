"""safetensors files of a Hugging Face directory: the header's JSON and its length changed."""

from __future__ import annotations

from pathlib import Path

from fuzz.mutate import safetensors_bytes
from fuzz.target import CONFIG, Target, overwrite, weights
from tiny_models import write_huggingface

from spqt_ti.sources.huggingface import read_header


def prepare(folder: Path) -> Target:
    path = write_huggingface(folder / "m", CONFIG, weights(), dtype="bf16") / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    rest = len(raw) - 8 - size

    def read(head: bytes) -> None:
        overwrite(path, head, len(head) + rest)
        for stored in read_header(path).values():
            if not stored.problem:
                stored.load()

    return Target((raw[: 8 + size],), safetensors_bytes, read)
