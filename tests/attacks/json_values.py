"""A tokenizer.json of 30 MB that holds ten million empty lists.

Other programs: Python's json module makes 0.7 GB of it.
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_models import random_weights, tiny_config, tiny_tokenizer_json, write_huggingface


def make(folder: Path) -> list[Path]:
    """One directory."""
    path = write_huggingface(folder / "values", tiny_config(), random_weights(tiny_config()))
    whole = json.dumps(json.loads(tiny_tokenizer_json()) | {"x": "HERE"})
    (path / "tokenizer.json").write_text(whole.replace('"HERE"', "[" + "[]," * 10_000_000 + "[]]"))
    return [path]
