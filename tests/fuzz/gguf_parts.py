"""A GGUF header taken to pieces, one of them changed, and put together again."""

from __future__ import annotations

import random
import struct
from typing import Any

import gguf
from fuzz.mutate import ODD, raw_bytes
from gguf_bytes import BOOL, FLOAT32, INT32, STRING, UINT32, array, field, gguf_file, text

KEYS = (
    "general.architecture", "general.alignment", "general.type", "split.count", "split.no", "split.tensors.count",
    "llama.block_count", "llama.context_length", "llama.attention.head_count", "llama.attention.head_count_kv",
    "llama.embedding_length", "llama.feed_forward_length", "llama.rope.scaling.type", "llama.rope.scaling.factor",
    "llama.rope.freq_base", "llama.rope.dimension_count", "llama.vocab_size", "llama.attention.key_length",
    "llama.attention.value_length", "llama.attention.layer_norm_rms_epsilon", "llama.attention.sliding_window",
    "llama.attention.scale", "llama.attention.causal", "llama.rope.dimension_sections", "llama.expert_count",
    "llama.rope.scaling.attn_factor", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.chat_template", "x.y",
)  # fmt: skip
_ODD = (*ODD[:28], 0xFFFFFFFF, 300, "llama", "gpt2", "tekken", "linear", "yarn", b"\xff\xfe", ["a", ""], [1, 1])
_SIZES = struct.Struct("<IQQ")
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def mutate(header: bytes, rng: random.Random) -> bytes:
    """A header with bytes changed, or one to three of its keys or tensors."""
    if rng.random() < 0.3:
        return raw_bytes(header, rng)
    try:
        fields, tensors = taken_apart(header)
    except (struct.error, KeyError, MemoryError, OverflowError, RecursionError):
        return raw_bytes(header, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(fields, tensors, rng)
    return gguf_file(fields, tensors)


def taken_apart(header: bytes) -> tuple[list[bytes], list[bytes]]:
    """Keys with their values, and entries of tensors; struct.error or KeyError where the header is damaged."""
    _, tensor_count, field_count = _SIZES.unpack_from(header, 4)
    position, fields, tensors = 4 + _SIZES.size, [], []
    for _ in range(field_count):
        start = position
        position = _after_text(header, position)
        (kind,) = struct.unpack_from("<I", header, position)
        position = _after_value(header, position + 4, kind)
        fields.append(header[start:position])
    for _ in range(tensor_count):
        start = position
        position = _after_text(header, position)
        (dimensions,) = struct.unpack_from("<I", header, position)
        position += 4 + 8 * dimensions + 12
        tensors.append(header[start:position])
    return fields, tensors


def _after_text(header: bytes, position: int) -> int:
    (size,) = struct.unpack_from("<Q", header, position)
    return int(position + 8 + size)


def _after_value(header: bytes, position: int, kind: int) -> int:
    if kind == STRING:
        return _after_text(header, position)
    if kind != gguf.GGUFValueType.ARRAY:
        return position + _SCALAR_BYTES[kind]
    inner, count = struct.unpack_from("<IQ", header, position)
    position += 12
    if inner in _SCALAR_BYTES:
        return int(position + _SCALAR_BYTES[inner] * count)
    for _ in range(count):
        position = _after_value(header, position, inner)
    return position


def _change(fields: list[bytes], tensors: list[bytes], rng: random.Random) -> None:
    what = rng.randrange(10)
    if what < 6 or not tensors or not fields:
        key = rng.choice(KEYS)
        made = value_field(key, rng.choice(_ODD))
        head = text(key)
        same = [i for i, entry in enumerate(fields) if entry.startswith(head)]
        if same:
            fields[same[0]] = made
        else:
            fields.append(made)
    elif what == 6:
        chosen = rng.choice((fields, tensors))
        del chosen[rng.randrange(len(chosen))]
    elif what == 7:
        chosen = rng.choice((fields, tensors))
        chosen.append(rng.choice(chosen))
    else:
        chosen = tensors if what == 8 else fields
        place = rng.randrange(len(chosen))
        chosen[place] = raw_bytes(chosen[place], rng)


def value_field(key: str, value: Any) -> bytes:
    """A key with a value in the GGUF type that fits it; one that fits none as text."""
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
