"""An index that says a tensor is in a file outside of the directory.

Other programs: a reader that joins the names opens any file of the user's that is named.
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_models import random_weights, tiny_config, write_huggingface


def make(folder: Path) -> list[Path]:
    """One directory."""
    path = write_huggingface(folder / "index", tiny_config(), random_weights(tiny_config()), shards=2)
    index = path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["model.norm.weight"] = "../../etc/passwd"
    index.write_text(json.dumps(fields))
    return [path]
