"""Mutations that keep an input's structure: JSON values are changed in place, bytes cut, flipped and repeated."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**32 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320, "", "x",
    "0", "\0", "\x1b[31m", "é", "▁", "a" * 5000, [], {}, [[]], [None], {"": None}, {"type": "x"}, [1, "a", None],
)  # fmt: skip
_ODD_TEXTS = tuple(json.dumps(value) for value in ODD)  # a fresh value of each: what is put in may be changed later
_LARGE = ("[" * 200_000, '{"a":' * 50_000, "1" * 6000)
_SMALL = ("NaN", "Infinity", "-", '{"a": 1, "a": 2}', "", "null", "\ufeff{}", "\\ud800", "1e999", "[[[[[]]]]]")
_BYTES = tuple(bytes([value]) for value in (0, 1, 0x7F, 0x80, 0xFF))
_WORDS = tuple(value.to_bytes(8, "little") for value in (2**63, 2**32, 2**31 - 1, 0, 1, 2**64 - 1, 1 << 20))


def json_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A JSON text with one to four values changed; now and then one of text rather than of values."""
    kind = rng.random()
    if kind < 0.08:
        return raw_bytes(raw, rng)
    if kind < 0.12:
        where = rng.randrange(len(raw) + 1)
        return raw[:where] + rng.choice(_SMALL).encode() + raw[where:]
    if kind < 0.1205:  # takes a reader as long as a hundred others
        return rng.choice(_LARGE).encode()
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw_bytes(raw, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = json_value(value, rng)
    return json.dumps(value).encode()


def json_value(value: Any, rng: random.Random) -> Any:
    """`value` with one place changed: replaced, removed, renamed, repeated, or swapped with another place."""
    place = _place(value, rng)
    if place is None:
        return odd(rng)
    parent, key = place
    what = rng.randrange(8)
    if what < 3:
        parent[key] = odd(rng)
    elif what == 3:
        del parent[key]
    elif what == 4 and isinstance(parent, dict):
        parent[rng.choice((f"{key}_", "", "type", "x"))] = parent.pop(key)
    elif what == 5:
        other, where = _place(value, rng) or place
        parent[key] = json.loads(json.dumps(other[where]))
    elif isinstance(parent, list):
        parent[key:key] = [parent[key]] * rng.choice((1, 3, 300))
    elif isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * rng.choice((-1, 0.5, 2, 1000, 2**20)) + rng.choice((0, 1, -1))
    elif isinstance(parent[key], str):
        parent[key] = _text(parent[key], rng)
    return value


def odd(rng: random.Random) -> Any:
    """A value that is seldom right."""
    return json.loads(rng.choice(_ODD_TEXTS))


def raw_bytes(raw: bytes, rng: random.Random, upto: int | None = None) -> bytes:
    """Bytes before `upto` (default: all) overwritten, removed, inserted, repeated or cut off."""
    changed, end = bytearray(raw), min(len(raw), upto or len(raw))
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not end:
            break
        where, what = rng.randrange(end), rng.randrange(8)
        if what < 3:
            changed[where : where + 1] = rng.choice(_BYTES) if rng.random() < 0.6 else rng.randbytes(1)
        elif what == 3:
            changed[where : where + 8] = rng.choice(_WORDS)
        elif what == 4:
            del changed[where : where + rng.choice((1, 4, 8, 100))]
        elif what == 5:
            changed[where:where] = rng.randbytes(rng.choice((1, 8)))
        elif what == 6:
            changed[where : where + 1] = (
                bytes([changed[where] ^ (1 << rng.randrange(8))]) if where < len(changed) else b""
            )
        else:
            other, size = rng.randrange(end), rng.choice((1, 4, 8, 32))
            changed[where : where + size] = changed[other : other + size]
    if rng.random() < 0.08:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def safetensors_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file, or its header alone, with the JSON changed; its length is seldom wrong afterwards."""
    size = 8 + int.from_bytes(raw[:8], "little")
    if rng.random() < 0.3 or size > len(raw):
        return raw_bytes(raw, rng, min(size, len(raw)))
    text = json_bytes(raw[8:size], rng)
    lengths = (0, 2**63, 2**31, len(text) + 1, len(raw), len(text) - 1)
    claimed = len(text) if rng.random() < 0.9 else max(0, rng.choice(lengths))
    return claimed.to_bytes(8, "little") + text + raw[size:]


def _place(value: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """(container, key) of a place in a value, found on a walk from the root; None where there is none."""
    found = None
    while isinstance(value, (dict, list)) and value:
        if isinstance(value, dict):
            key: Any = rng.choice(list(value)) if len(value) < 64 else _some_key(value, rng)
        else:
            key = rng.randrange(len(value))
        found = value, key
        if rng.random() < 0.25:
            break
        value = value[key]
    return found


def _some_key(value: dict[str, Any], rng: random.Random) -> str:
    """One of the first or of the last: a list of a whole vocabulary's keys would take longer than the reader."""
    keys = iter(value) if rng.random() < 0.5 else reversed(value)
    for _ in range(rng.randrange(20)):
        next(keys)
    return next(keys)


def _text(text: str, rng: random.Random) -> str:
    where = rng.randrange(len(text) + 1)
    piece = rng.choice(("", "\0", "\x1b[2J", "é", "▁", "{{", "%}", "<", "|", " ", "\n", "a" * 300, "/", "..", "\ud800"))
    return text[:where] + piece + text[where + rng.choice((0, 0, 1, 8)) :]
