"""GGUF files as models: configuration, tokenizer and chat template from the metadata, and a tensor."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

from fuzz.gguf_parts import KEYS, mutate, taken_apart, value_field
from fuzz.target import CONFIG, Target, overwrite, small_tokenizer_json, weights
from gguf_bytes import gguf_file
from gguf_bytes import text as gguf_text
from tiny_models import SPECIAL_TOKENS, write_gguf

from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.gguf_file import GgufFile
from spqt_ti.sources.open import open_checkpoint

MESSAGES = [{"role": "user", "content": "the fox"}]


def prepare(folder: Path) -> Target:
    seeds, rest = headers(folder)
    path = folder / "m.gguf"

    def read(header: bytes) -> None:
        checkpoint = open_checkpoint(overwrite(path, header, len(header) + rest))
        rng = random.Random(zlib.crc32(header))
        checkpoint.read(rng.choice(checkpoint.names()))
        tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config, checkpoint.chat_template)
        tokenizer.decode(tokenizer.encode("the quick fox <|im_end|> 1234", parse_special=rng.random() < 0.5))
        if checkpoint.chat_template and rng.random() < 0.1:  # a template takes longer than all the rest
            tokenizer.chat(MESSAGES)

    return Target(seeds, mutate, read)


def headers(folder: Path) -> tuple[tuple[bytes, ...], int]:
    """Headers to begin with (three types, both tokenizers, many keys), and how many bytes of data follow."""
    found, rest = [], 0
    for kind in ("F32", "F16", "Q8_0"):
        whole = write_gguf(folder / f"whole-{kind}.gguf", CONFIG, weights(), kind=kind)
        first = min(entry.offset for entry in GgufFile.open(whole).tensors.values())
        raw = whole.read_bytes()
        fields, tensors = taken_apart(raw[:first])
        fields = _with(fields, _byte_level())
        found.append(gguf_file(fields, tensors))
        rest = max(rest, len(raw) - first)
    have = [key for key in KEYS if any(entry.startswith(gguf_text(key)) for entry in fields)]
    more = [value_field(key, 1) for key in KEYS if key not in have]
    found.append(gguf_file(fields + more, tensors))
    found.append(gguf_file(_with(fields, _sentencepiece()), tensors))
    return tuple(found), rest


def _with(fields: list[bytes], changes: dict[str, object]) -> list[bytes]:
    kept = [entry for entry in fields if not any(entry.startswith(gguf_text(key)) for key in changes)]
    return kept + [value_field(key, value) for key, value in changes.items()]


def _byte_level() -> dict[str, object]:
    """Metadata of the small tokenizer."""
    model = json.loads(small_tokenizer_json())["model"]
    types = [3 if token in SPECIAL_TOKENS else 1 for token in model["vocab"]]
    merges = [" ".join(pair) for pair in model["merges"]]
    return {
        "tokenizer.ggml.tokens": list(model["vocab"]), "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }  # fmt: skip


def _sentencepiece() -> dict[str, object]:
    """Metadata of a small SentencePiece vocabulary."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x41>", *"▁thequickfox", "▁th", "▁the", "ox"]
    tokens = list(dict.fromkeys(tokens))
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 6, 6, *[1] * (len(tokens) - 5)],
        "tokenizer.ggml.scores": [-float(place) for place in range(len(tokens))],
    }  # fmt: skip
