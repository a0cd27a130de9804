"""What a fuzz target is: inputs to begin with, how one is changed, and the reader that gets it.

An input is bytes, so that it can be kept, repeated and cut down; one of a folder's files has its name before a line
feed.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_models import random_weights, tiny_config, tiny_tokenizer_json

Mutate = Callable[[bytes, random.Random], bytes]

# As small as a model can be: what an input costs is then the reader's time, and not the disk's.
CONFIG = tiny_config(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, vocab_size=300,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One reader. `read` raises errors of the project for input that is refused, and nothing else."""

    seeds: tuple[bytes, ...]
    mutate: Mutate
    read: Callable[[bytes], None]


def weights() -> dict[str, np.ndarray]:
    """Of CONFIG."""
    return random_weights(CONFIG)


def small_tokenizer_json() -> str:
    """The tests' tokenizer with its special tokens, 32 letters and what merges make of them: a fifth of the JSON."""
    fields = json.loads(tiny_tokenizer_json())
    model = fields["model"]
    names = [*(entry["content"] for entry in fields["added_tokens"]), *"abcdefghijklmnopqrstuvwxyzĠĊéÃ01"]
    merges = []
    for pair in model["merges"][:12]:
        left, right = pair if isinstance(pair, list) else pair.split(" ")
        if left in names and right in names:
            merges.append([left, right])
            names.append(left + right)
    model |= {"vocab": {name: place for place, name in enumerate(dict.fromkeys(names))}, "merges": merges}
    return json.dumps(fields)


def named(name: str, content: bytes) -> bytes:
    """An input that is one file among others."""
    return name.encode() + b"\n" + content


def parts(raw: bytes) -> tuple[str, bytes]:
    """Name and content of such an input."""
    name, _, content = raw.partition(b"\n")
    return name.decode(), content


def of_content(mutate: Mutate) -> Mutate:
    """The mutation of an input that is one file among others: its name stays."""

    def changed(raw: bytes, rng: random.Random) -> bytes:
        name, _, content = raw.partition(b"\n")
        return name + b"\n" + mutate(content, rng)

    return changed


class Folder:
    """A folder whose files are as they were before each input, but for the one that is put into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.whole = {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}
        self._changed: str | None = None

    def put(self, name: str, content: bytes) -> Path:
        """Write `content` under `name`, and put back what was changed before."""
        if self._changed not in (None, name):
            overwrite(self.path / str(self._changed), self.whole[str(self._changed)])
        self._changed = name
        return overwrite(self.path / name, content)


def overwrite(path: Path, content: bytes, size: int | None = None) -> Path:
    """Replace what is in a file; with `size`, zeros follow, which take no time. Cheaper than Path.write_bytes."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(file, content)
        if size is not None:
            os.ftruncate(file, max(size, len(content)))
    finally:
        os.close(file)
    return path
