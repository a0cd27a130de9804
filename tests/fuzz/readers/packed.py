"""Folders of GPTQ, AWQ and mlx: the description of the packing, and the headers of their safetensors."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

from fuzz.mutate import json_bytes, safetensors_bytes
from fuzz.target import Folder, Target, named, overwrite, parts, small_tokenizer_json
from packed_weights import Case, write_packed
from tiny_models import random_weights, tiny_config

from spqt_ti.sources.open import model_files, open_checkpoint

CONFIG = tiny_config(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, vocab_size=300,
)  # fmt: skip
CASES = Case("gptq", 16, act_order=True), Case("gptq", 32, bits=8, version=2), Case("awq", 32), Case("mlx", 32)
WEIGHTS = "model.safetensors"


def prepare(folder: Path) -> Target:
    models, seeds, data = {}, [], {}
    for case in CASES:
        name = f"{case.kind}{case.bits}"
        directory = folder / name
        write_packed(directory, CONFIG, random_weights(CONFIG), case)
        (directory / "tokenizer.json").write_text(small_tokenizer_json())
        raw = (directory / WEIGHTS).read_bytes()
        size = 8 + int.from_bytes(raw[:8], "little")
        data[name] = len(raw) - size
        overwrite(directory / WEIGHTS, raw[:size], len(raw))  # zeros, which take no time to write
        models[name] = Folder(directory)
        config = models[name].whole["config.json"]
        seeds += [named(f"{name}/config.json", config)] * 2 + [named(f"{name}/{WEIGHTS}", raw[:size])]

    def mutate(raw: bytes, rng: random.Random) -> bytes:
        name, _, content = raw.partition(b"\n")
        change = safetensors_bytes if name.endswith(b".safetensors") else json_bytes
        return name + b"\n" + change(content, rng)

    def read(raw: bytes) -> None:
        place, content = parts(raw)
        model, _, name = place.partition("/")
        path = models[model].put(name, content)
        if name == WEIGHTS:
            overwrite(path, content, min(8 + int.from_bytes(content[:8], "little"), 1 << 20) + data[model])
        checkpoint = open_checkpoint(path.parent)
        rng = random.Random(zlib.crc32(raw))
        packed = [name for name in checkpoint.names() if "_proj" in name]
        checkpoint.read(rng.choice(packed or checkpoint.names()))
        model_files(path.parent)

    return Target(tuple(seeds), mutate, read)
