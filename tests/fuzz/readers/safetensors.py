"""safetensors files of a Hugging Face directory: the header's JSON and its length changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import json_text, raw_bytes
from tiny_models import random_weights, tiny_config, write_huggingface

from spqt_ti.sources.open import open_checkpoint


def prepare(folder: Path) -> Callable[[random.Random], None]:
    config = tiny_config()
    path = write_huggingface(folder / "m", config, random_weights(config), dtype="bf16") / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]

    def feed(rng: random.Random) -> None:
        if rng.random() < 0.4:
            content = raw_bytes(raw, rng, 8 + size)
        else:
            text = json_text(header, rng)
            claimed = len(text) if rng.random() < 0.9 else rng.choice((0, 2**63, 2**31, len(text) + 1, len(raw)))
            content = claimed.to_bytes(8, "little") + text + data
        path.write_bytes(content)
        checkpoint = open_checkpoint(path.parent)
        checkpoint.read(rng.choice(checkpoint.names()))

    return feed
