"""Which model a source is, by the content of its files: size and SHA-256 of each.

Hashing gigabytes takes seconds, so what was found is remembered in the cache folder, with what a file system says of a
file that has not changed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from spqt_ti import bounded_json
from spqt_ti.atomic import written_whole
from spqt_ti.bounded_json import JsonError
from spqt_ti.cache import cache_dir, private_folder
from spqt_ti.container.manifest import Files
from spqt_ti.container.reader import sha256_of
from spqt_ti.errors import CheckpointError
from spqt_ti.sources.open import model_files

__all__ = ["cached_copy", "files_of", "name_of"]

_FOLDER = "sources"
REMEMBERED = 64 << 20  # bytes of a source from which on hashing it again would be felt


def files_of(source: Path) -> Files:
    """Name -> bytes and SHA-256 of the files that make a source model. CheckpointError where one cannot be read."""
    memory = cache_dir() / _FOLDER / f"{hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]}.json"
    known, states, sums = _load(memory), {}, {}
    try:
        for file in model_files(source):
            state = states[file.name] = _state(file)
            remembered = known.get(f"{file.name} {state}")
            sums[file.name] = remembered if isinstance(remembered, str) else sha256_of(file)
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read: {error}") from error
    found = {f"{name} {state}": sums[name] for name, state in states.items()}
    if found != known and sum(state[0] for state in states.values()) >= REMEMBERED:
        _save(memory, found)
    return {name: (state[0], sums[name]) for name, state in states.items()}


def cached_copy(source: Path, scheme: str = "q4_k", layout: str = "zigzag") -> Path:
    """Where the quantised copy of a source model is, or will be once it is used: one per content, scheme and layout,
    whatever the model is called.
    """
    content = json.dumps({name: sha256 for name, (_, sha256) in sorted(files_of(source).items())})
    ending = f"-{layout}-{scheme}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    folder = cache_dir() / "quantized"
    made = sorted(folder.glob(f"*{glob.escape(ending)}"))
    return made[0] if made else folder / f"{Path(name_of(source)).stem}{ending}"


def name_of(source: Path) -> str:
    """What a source model is called: the last part of its path, in the hub library's cache the repository's name."""
    source = Path(os.path.abspath(source))
    if source.parent.name == "snapshots" and source.parent.parent.name.startswith("models--"):
        return source.parent.parent.name.rpartition("--")[2]
    return source.name


def _state(file: Path) -> list[int]:
    """What changes when a file does, its size first."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load(memory: Path) -> dict[str, Any]:
    try:
        return bounded_json.read_object(memory)
    except (OSError, JsonError):
        return {}  # a memory can be done without


def _save(memory: Path, found: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        private_folder(_FOLDER)  # what is believed later is the user's alone to write
        with written_whole(memory) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
