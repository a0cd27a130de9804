"""A tokenizer.json whose post-processor puts nine million tokens before each text, in 0.2 MB.

Other programs: the tokenizers library (0.23) took 1.7 GB and 19 s for one word.
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_models import random_weights, tiny_config, tiny_tokenizer_json, write_huggingface


def make(folder: Path) -> list[Path]:
    """Two directories: one token of many ids, often; and the text itself, often."""
    ids = {"id": "x", "ids": [1] * 3000, "tokens": ["a"] * 3000}
    one, text = {"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    made = []
    for name, single in (("ids", [one] * 3000 + [text]), ("text", [text] * 100_000)):
        path = write_huggingface(folder / name, tiny_config(), random_weights(tiny_config()))
        template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {"x": ids}}
        nested = {"type": "Sequence", "processors": [template]}
        (path / "tokenizer.json").write_text(json.dumps(json.loads(tiny_tokenizer_json()) | {"post_processor": nested}))
        made.append(path)
    return made
