"""config.json, generation_config.json and the index of a Hugging Face directory."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import json_text
from tiny_models import LLAMA3_ROPE, random_weights, tiny_config, write_huggingface

from spqt_ti.sources.open import model_files, open_checkpoint


def prepare(folder: Path) -> Callable[[random.Random], None]:
    config = tiny_config(rope_scaling=LLAMA3_ROPE)
    directory = write_huggingface(folder / "m", config, random_weights(config), shards=2)
    names = ("config.json", "generation_config.json", "model.safetensors.index.json")
    (directory / names[1]).write_text(json.dumps({"eos_token_id": [2, 1], "temperature": 0.5, "do_sample": True}))
    whole = {name: json.loads((directory / name).read_text()) for name in names}

    def feed(rng: random.Random) -> None:
        for name, value in whole.items():
            (directory / name).write_text(json.dumps(value))
        name = rng.choice(names)
        (directory / name).write_bytes(json_text(whole[name], rng))
        checkpoint = open_checkpoint(directory)
        checkpoint.read(checkpoint.names()[0])
        model_files(directory)

    return feed
