"""A tokenizer.json in which one token has the id 2^31.

Other programs: the tokenizers library (0.23) took 8 GB and 17 s to write it again, for a list of the missing ids.
"""

from __future__ import annotations

import json
from pathlib import Path

from tiny_models import random_weights, tiny_config, tiny_tokenizer_json, write_huggingface


def make(folder: Path) -> list[Path]:
    """One directory."""
    path = write_huggingface(folder / "ids", tiny_config(), random_weights(tiny_config()))
    fields = json.loads(tiny_tokenizer_json())
    fields["model"]["vocab"]["far away"] = 2**31
    (path / "tokenizer.json").write_text(json.dumps(fields))
    return [path]
