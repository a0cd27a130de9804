"""JSON that may be damaged or hostile: bounded in size, depth and number
of values, nothing ambiguous, one error for every kind of fault.

Stricter than Python's `json`: no NaN or Infinity, no whole number beyond 64 bits, no key twice with different values.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MOST_BYTES = 128 << 20  # the largest tokenizer.json in use is about 35 MB
MOST_VALUES = 1 << 22  # lists, objects and what is in them: the largest tokenizers have 1.5 million
DEEPEST = 64  # what is nested deeper is an attack on a reader's stack
_MOST_DIGITS = 20
_PIECE = 1 << 20


class JsonError(ValueError):
    """Text that is not the JSON that was expected; the message does not name the file."""


def parse(text: str | bytes, most_values: int = MOST_VALUES) -> Any:
    """The value of a JSON text (bytes: UTF-8); JsonError says what is wrong with any other."""
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        lists = decoded.count("[") + decoded.count("{")
        values = lists + decoded.count(",")
        if values > most_values:  # "[]," takes 20 times as much memory as text
            raise JsonError(f"{values:,} values, more than {most_values:,}")
        value = json.loads(
            decoded, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_int=_bounded_integer
        )
    except JsonError:
        raise
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 text ({error})") from error
    except RecursionError as error:
        raise JsonError(f"nested deeper than {DEEPEST} levels") from error
    except ValueError as error:
        raise JsonError(f"not valid JSON ({error})") from error
    if lists > DEEPEST:  # otherwise it cannot be deep, and looking takes as long
        _check_depth(value)
    return value


def parse_object(text: str | bytes, most_values: int = MOST_VALUES) -> dict[str, Any]:
    """As `parse`, for a text that must be a JSON object."""
    value = parse(text, most_values)
    if not isinstance(value, dict):
        raise JsonError(f"expected a JSON object, found {_kind(value)}")
    return value


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most_bytes`. Raises JsonError, and OSError where it cannot be read."""
    return parse_object(read_bytes(path, most_bytes))


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """What is in a regular file of at most `most_bytes`; JsonError for a larger one and for pipes and devices."""
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise JsonError("not a regular file")
        # Read, not believed: a file may grow, and those of /proc have no size. In pieces, because `read(n)` takes n
        # bytes of memory whatever there is.
        content = bytearray()
        while len(content) <= most_bytes and (piece := file.read(min(_PIECE, most_bytes + 1 - len(content)))):
            content += piece
    if len(content) > most_bytes:
        raise JsonError(f"larger than {most_bytes:,} bytes")
    return bytes(content)


def _open_without_waiting(path: str, flags: int) -> int:
    """A pipe without a writer would be waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        for name, value in pairs:
            if made[name] != value:
                raise JsonError(f"the key {name[:80]!r} is there twice, with different values")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _bounded_integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise JsonError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    """Level by level: a walk that recursed would need the stack that it protects."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [child for part in level for child in _children(part) if isinstance(child, (dict, list))]
        if not level:
            return
    raise JsonError(f"nested deeper than {DEEPEST} levels")


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
