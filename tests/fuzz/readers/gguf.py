"""GGUF files: bytes of the header changed, or the metadata of a small model replaced value by value."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from fuzz.mutate import ODD, raw_bytes
from gguf_bytes import BOOL, FLOAT32, INT32, STRING, UINT32, array, field, gguf_file, tensor, text
from tiny_models import random_weights, tiny_config, write_gguf

from spqt_ti.generation.tokenizer import Tokenizer
from spqt_ti.sources.gguf_file import GgufFile
from spqt_ti.sources.open import open_checkpoint

MESSAGES = [{"role": "user", "content": "the fox"}]
KEYS = (
    "general.architecture", "general.alignment", "general.type", "split.count", "split.no", "llama.block_count",
    "llama.context_length", "llama.attention.head_count", "llama.attention.head_count_kv", "llama.embedding_length",
    "llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.freq_base", "llama.vocab_size",
    "llama.attention.sliding_window", "llama.attention.scale", "llama.rope.dimension_sections", "llama.expert_count",
    "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.padding_token_id", "tokenizer.ggml.fim_pad_token_id", "tokenizer.chat_template", "x.y",
)  # fmt: skip


def prepare(folder: Path) -> Callable[[random.Random], None]:
    whole = folder / "whole.gguf"
    write_gguf(whole, tiny_config(), random_weights(tiny_config()))
    raw, opened = whole.read_bytes(), GgufFile.open(whole)
    first = min(entry.offset for entry in opened.tensors.values())
    metadata = dict(opened.metadata)
    tensors = [
        tensor(entry.name, entry.shape[::-1], entry.offset - first, entry.kind) for entry in opened.tensors.values()
    ]

    def feed(rng: random.Random) -> None:
        if rng.random() < 0.5:
            content = raw_bytes(raw, rng, first)
        else:
            changed = dict(metadata)
            for _ in range(rng.choice((1, 1, 2, 3))):
                changed[rng.choice(KEYS)] = _odd(rng)
            content = gguf_file([_field(key, value) for key, value in changed.items()], tensors, raw[first:])
        path = folder / "m.gguf"
        path.write_bytes(content)
        checkpoint = open_checkpoint(path)
        checkpoint.read(rng.choice(checkpoint.names()))
        tokenizer = Tokenizer(checkpoint.tokenizer_json, checkpoint.config, checkpoint.chat_template)
        tokenizer.decode(tokenizer.encode("the quick fox <|im_end|> 1234", parse_special=rng.random() < 0.5))
        if checkpoint.chat_template:
            tokenizer.chat(MESSAGES)

    return feed


def _odd(rng: random.Random) -> Any:
    return rng.choice((*ODD[:28], 0xFFFFFFFF, 300, "llama", "gpt2", "tekken", "linear", b"\xff\xfe", ["a", ""], [1, 1]))


def _field(key: str, value: Any) -> bytes:
    """A value in the GGUF type that fits it; one that fits none as text."""
    if isinstance(value, bool):
        return field(key, BOOL, bytes([value]))
    if isinstance(value, int) and 0 <= value < 2**32:
        return field(key, UINT32, struct.pack("<I", value))
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return field(key, gguf.GGUFValueType.INT64, struct.pack("<q", value))
    if isinstance(value, float):
        return field(key, gguf.GGUFValueType.FLOAT64, struct.pack("<d", value))
    if isinstance(value, bytes | str):
        return field(key, STRING, text(value))
    items = list(value) if not isinstance(value, dict | type(None) | int) else []
    if all(isinstance(item, str) for item in items):
        return field(key, gguf.GGUFValueType.ARRAY, array(STRING, len(items), b"".join(map(text, items))))
    numbers = [
        float(item) if isinstance(item, float) else 1 if isinstance(item, str | None | list) else int(item)
        for item in items
    ]
    form, kind = ("f", FLOAT32) if any(isinstance(n, float) for n in numbers) else ("i", INT32)
    packed = struct.pack(f"<{len(numbers)}{form}", *(min(n, 2**31 - 1) for n in numbers))
    return field(key, gguf.GGUFValueType.ARRAY, array(kind, len(numbers), packed))
