"""tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json, then texts through what they
make.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.mutate import json_text
from tiny_models import random_weights, tiny_config, tiny_tokenizer_json, write_huggingface

from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.huggingface_tokenizer import read_tokenizer

TEXTS = ("the quick fox", "<|im_end|>x<|tool|>", "", "\0\x1b[31m", "é日本" * 5, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab")
REGEXES = (r"(a|a)+$", r"(a*)*b", r"(?<=a+)b", r"\p{Nope}", "(", r"a{1000000}", "")


def prepare(folder: Path) -> Callable[[random.Random], None]:
    config = tiny_config()
    directory = write_huggingface(folder / "m", config, random_weights(config))
    whole = {
        "tokenizer.json": json.loads(tiny_tokenizer_json()),
        "tokenizer_config.json": {
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "special": True},
            "bos_token": "<|im_start|>", "additional_special_tokens": ["<|tool|>", "<|x|>"],
            "added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True, "rstrip": False}},
            "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}],
        },
        "special_tokens_map.json": {"pad_token": {"content": "<|pad|>", "lstrip": True}},
        "added_tokens.json": {"<|a|>": 301, "<|b|>": 302},
    }  # fmt: skip

    def feed(rng: random.Random) -> None:
        for name, value in whole.items():
            (directory / name).write_text(json.dumps(value))
        name = rng.choice(list(whole))
        if name == "tokenizer.json" and rng.random() < 0.2:
            value = json.loads(tiny_tokenizer_json())
            split = {
                "type": "Split",
                "pattern": {"Regex": rng.choice(REGEXES)},
                "behavior": "Isolated",
                "invert": False,
            }
            value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, value["pre_tokenizer"]]}
            (directory / name).write_text(json.dumps(value))
        else:
            (directory / name).write_bytes(json_text(whole[name], rng))
        text, template = read_tokenizer(directory)
        tokenizer = Tokenizer(text, config, template)
        ids = tokenizer.encode(rng.choice(TEXTS), parse_special=rng.random() < 0.5)
        tokenizer.decode([*ids, rng.randrange(config.vocab_size)], skip_special=rng.random() < 0.5)
        if template:
            tokenizer.encode_chat([{"role": "user", "content": "x"}])

    return feed
