"""Mutations that keep an input's structure: JSON values are changed in place, bytes cut and flipped."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**32 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320, "", "x",
    "0", "\0", "\x1b[31m", "é", "▁", "a" * 5000, [], {}, [[]], [None], {"": None}, {"type": "x"}, [1, "a", None],
)  # fmt: skip
TEXTS = ("[" * 200_000, '{"a":' * 50_000, "NaN", "Infinity", "1" * 6000, '{"a": 1, "a": 2}', "", "null", "\ufeff{}")


def json_text(value: Any, rng: random.Random) -> bytes:
    """A JSON text of `value` with one to four mutations; now and then one of text rather than of values."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        changed = json_value(changed, rng)
    text = json.dumps(changed)
    kind = rng.random()
    if kind < 0.06:
        where = rng.randrange(len(text) + 1)
        text = text[:where] + rng.choice(TEXTS) + text[where:]
    elif kind < 0.09:
        text = rng.choice(TEXTS)
    raw = text.encode()
    return raw_bytes(raw, rng) if kind > 0.95 else raw


def json_value(value: Any, rng: random.Random) -> Any:
    """`value` with one place changed: replaced, removed, renamed, repeated, or swapped with another place."""
    places = list(_places(value))
    if not places:
        return rng.choice(ODD)
    parent, key = rng.choice(places)
    what = rng.randrange(7)
    if what < 3:
        parent[key] = copy.deepcopy(rng.choice(ODD))
    elif what == 3:
        del parent[key]
    elif what == 4 and isinstance(parent, dict):
        parent[rng.choice((f"{key}_", "", "type", "x"))] = parent.pop(key)
    elif what == 5:
        other, place = rng.choice(places)
        parent[key] = copy.deepcopy(other[place])
    elif isinstance(parent, list):
        parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice((1, 3, 300))
    elif isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * rng.choice((-1, 0.5, 2, 1000, 2**20)) + rng.choice((0, 1, -1))
    return value


def raw_bytes(raw: bytes, rng: random.Random, upto: int | None = None) -> bytes:
    """Bytes before `upto` (default: all) overwritten, removed, inserted or cut off."""
    changed, end = bytearray(raw), min(len(raw), upto or len(raw))
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not end:
            break
        where, what = rng.randrange(end), rng.randrange(6)
        if what < 3:
            changed[where : where + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
        elif what == 3:
            changed[where : where + 8] = rng.choice((2**63, 2**32, 2**31 - 1, 0, 1, 2**64 - 1)).to_bytes(8, "little")
        elif what == 4:
            del changed[where : where + rng.choice((1, 4, 8, 100))]
        else:
            changed[where:where] = rng.randbytes(rng.choice((1, 8)))
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed) + 1) :]
    return bytes(changed)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a value; of long lists the ends alone."""
    found, waiting = [], [value]
    while waiting:
        part = waiting.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        if len(keys) > 40:
            keys = [*keys[:10], *keys[-10:]]
        found += [(part, key) for key in keys]
        waiting += [part[key] for key in keys]
    return found
