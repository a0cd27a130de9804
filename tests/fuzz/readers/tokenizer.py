"""tokenizer.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json, then texts through what they
make.
"""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

from fuzz.mutate import json_bytes
from fuzz.target import CONFIG, Folder, Target, named, of_content, parts, small_tokenizer_json

from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.huggingface_tokenizer import read_tokenizer

TEXTS = ("the quick fox", "<|im_end|>x<|tool|>", "", "\0\x1b[31m", "é日本" * 5, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab")
REGEXES = (r"(a|a)+$", r"(a*)*b", r"(?<=a+)b", r"\p{Nope}", "(", r"a{1000000}", r"\s+$", "")


def prepare(folder: Path) -> Target:
    directory = folder / "m"
    directory.mkdir()
    whole = {
        "tokenizer.json": json.loads(small_tokenizer_json()),
        "tokenizer_config.json": {
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "special": True},
            "bos_token": "<|im_start|>", "additional_special_tokens": ["<|tool|>", "<|x|>"],
            "added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True, "rstrip": False}},
            "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}],
        },
        "special_tokens_map.json": {"pad_token": {"content": "<|pad|>", "lstrip": True}},
        "added_tokens.json": {"<|a|>": 301, "<|b|>": 302},
    }  # fmt: skip
    for name, value in whole.items():
        (directory / name).write_text(json.dumps(value))
    files = Folder(directory)
    seeds = [named(name, content) for name, content in files.whole.items()]
    for regex in REGEXES:
        split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        both = {"type": "Sequence", "pretokenizers": [split, whole["tokenizer.json"]["pre_tokenizer"]]}
        seeds.append(named("tokenizer.json", json.dumps(whole["tokenizer.json"] | {"pre_tokenizer": both}).encode()))
    for changes in _KINDS:
        seeds.append(named("tokenizer.json", json.dumps(whole["tokenizer.json"] | changes).encode()))

    def read(raw: bytes) -> None:
        files.put(*parts(raw))
        rng = random.Random(zlib.crc32(raw))  # what is asked of the tokenizer comes from the input alone
        text, template = read_tokenizer(directory)
        tokenizer = Tokenizer(text, CONFIG, template)
        ids = tokenizer.encode(rng.choice(TEXTS), parse_special=rng.random() < 0.5)
        tokenizer.decode([*ids, rng.randrange(CONFIG.vocab_size)], skip_special=rng.random() < 0.5)
        if template and rng.random() < 0.1:  # a template takes longer than a tokenizer
            tokenizer.encode_chat([{"role": "user", "content": "x"}])

    return Target(tuple(seeds), of_content(json_bytes), read)


_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
_KINDS = (
    {"decoder": _METASPACE, "pre_tokenizer": _METASPACE},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}},
    {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
     "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"}},
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
     {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {
         "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}}},
)  # fmt: skip
