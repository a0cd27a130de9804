"""config.json, generation_config.json and the index of a Hugging Face directory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from fuzz.mutate import json_bytes
from fuzz.target import CONFIG, Folder, Target, named, of_content, parts, small_tokenizer_json, weights
from tiny_models import LLAMA3_ROPE, write_huggingface

from spqt_ti.sources.open import model_files, open_checkpoint

NAMES = "config.json", "generation_config.json", "model.safetensors.index.json"


def prepare(folder: Path) -> Target:
    config = dataclasses.replace(CONFIG, rope_scaling=LLAMA3_ROPE)
    directory = write_huggingface(folder / "m", config, weights(), shards=2)
    (directory / "tokenizer.json").write_text(small_tokenizer_json())
    (directory / NAMES[1]).write_text(json.dumps({"eos_token_id": [2, 1], "temperature": 0.5, "do_sample": True}))
    files = Folder(directory)
    seeds = [named(name, files.whole[name]) for name in NAMES]
    fields = json.loads(files.whole[NAMES[0]])
    for changed in (
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 9},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "attention_bias": True},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}},
    ):
        seeds.append(named(NAMES[0], json.dumps(fields | changed).encode()))

    def read(raw: bytes) -> None:
        files.put(*parts(raw))
        checkpoint = open_checkpoint(directory)
        checkpoint.read(checkpoint.names()[0])
        model_files(directory)

    return Target(tuple(seeds), of_content(json_bytes), read)
