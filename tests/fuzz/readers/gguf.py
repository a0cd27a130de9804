"""GGUF files: the header, every value of the metadata, every tensor."""

from __future__ import annotations

from pathlib import Path

from fuzz.gguf_parts import mutate
from fuzz.readers.gguf_model import headers
from fuzz.target import Target, overwrite

from spqt_ti.sources.gguf_file import GgufFile, problem


def prepare(folder: Path) -> Target:
    seeds, rest = headers(folder)
    path = folder / "m.gguf"

    def read(header: bytes) -> None:
        opened = GgufFile.open(overwrite(path, header, len(header) + rest))
        for key in opened.metadata:
            opened.metadata[key]
        for name in list(opened.tensors)[:2]:  # each is a mapping of its own, which costs more than the header
            if not problem(opened.tensors[name]):
                opened.load(name)

    return Target(seeds, mutate, read)
