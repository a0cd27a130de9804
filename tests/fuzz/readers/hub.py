"""Names of models on the hub, and a server's list of a repository's files."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from unittest.mock import patch

from fuzz.mutate import json_bytes
from fuzz.target import Target

from spqt_ti.bounded_json import JsonError, parse_object
from spqt_ti.errors import CheckpointError
from spqt_ti.sources import hub

FILES = {
    "config.json": 10, "model-00001-of-00002.safetensors": 99, "model-00002-of-00002.safetensors": 99,
    "m-Q4_K_M.gguf": 70, "Q8_0/m-Q8_0-00001-of-00002.gguf": 50, "Q8_0/m-Q8_0-00002-of-00002.gguf": 50,
    "mmproj-f16.gguf": 5, "additional_chat_templates/tool.jinja": 1, "tokenizer.json": 7,
}  # fmt: skip
NAMES = ("org/name", "org/name:Q4_K_M", "hf.co/org/name:Q8_0@main", "https://huggingface.co/o.rg/na-me@v1", "m.gguf")


def prepare(folder: Path) -> Target:
    del folder
    siblings = SimpleNamespace(siblings=())
    server = SimpleNamespace(repo_info=lambda *unused, **options: siblings)

    def read(raw: bytes) -> None:
        try:
            fields = parse_object(raw)
        except JsonError as error:
            raise CheckpointError(str(error)) from error
        name, files = fields.get("name"), fields.get("files")
        wanted = hub.parse(name) if isinstance(name, str) else None
        if wanted is None or not isinstance(files, dict):
            raise CheckpointError("no id of the hub, or no list")
        sizes = {file: size if isinstance(size, int) else None for file, size in files.items()}
        siblings.siblings = [SimpleNamespace(rfilename=file, size=size) for file, size in sizes.items()]
        with patch.multiple(hub, _api=lambda: server, _cached=lambda wanted: None):  # no network
            found, _ = hub._listing(wanted)
        for chosen in hub.chosen_files(wanted, found):
            parts = PurePosixPath(chosen).parts
            assert ".." not in parts
            assert parts[0] != "/"
            assert chosen.isprintable()

    seeds = tuple(json.dumps({"name": name, "files": FILES}).encode() for name in NAMES)
    gguf = {name: size for name, size in FILES.items() if name.endswith(".gguf")}
    one = json.dumps({"name": NAMES[1], "files": gguf | {"../../m-Q4_0.gguf": 3}}).encode()
    return Target((*seeds, one), json_bytes, read)
