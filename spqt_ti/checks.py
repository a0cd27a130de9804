"""Checks of arguments: each returns the value in its plain type, or raises the caller's error with the name in it."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np

from spqt_ti.errors import GenerationError, SpqtError

Error = type[SpqtError]


def whole_number(name: str, value: Any, least: int | None = None, error: Error = GenerationError) -> int:
    """An int (Python's or NumPy's, but no bool) of at least `least`; `error` for anything else."""
    bound = "" if least is None else f" of {least} or more"
    if isinstance(value, bool | np.bool_):
        raise error(f"{name} must be a whole number{bound}, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise error(f"{name} must be a whole number{bound}, not {_shown(value)}") from None
    if least is not None and number < least:
        raise error(f"{name} must be {least} or more, not {number}")
    return number


def real_number(name: str, value: Any, error: Error = GenerationError) -> float:
    """A finite number that is no bool; `error` for anything else."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real | np.floating | np.integer):
        raise error(f"{name} must be a number, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise error(f"{name} must be a finite number, not one of {len(str(value))} digits") from None
    if not math.isfinite(number):
        raise error(f"{name} must be a finite number, not {number}")
    return number


def text(name: str, value: Any, error: Error = GenerationError) -> str:
    """A str that can be written as UTF-8 (no lone surrogates); `error` for anything else."""
    if not isinstance(value, str):
        hint = "; decode it first" if isinstance(value, bytes | bytearray) else ""
        raise error(f"{name} must be a str, not {type(value).__name__}{hint}")
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        where = f"lone surrogate U+{ord(value[problem.start]):04X} at character {problem.start}"
        raise error(f"{name} is not valid UTF-8 text ({where})") from None
    return value


def token_ids(tokens: Any, vocabulary: int) -> np.ndarray:
    """Token ids i32 [n], each between 0 and vocabulary - 1. Raises GenerationError for other shapes, types, ids."""
    expected = "token ids must be a sequence of whole numbers"
    if isinstance(tokens, str | bytes | bytearray | memoryview):
        raise GenerationError(f"{expected}, not {type(tokens).__name__}; encode text with the tokenizer")
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):
        raise GenerationError(f"{expected}, not a nested one") from None
    if ids.ndim != 1:
        found = type(tokens).__name__ if ids.ndim == 0 else f"an array of shape {list(ids.shape)}"
        raise GenerationError(f"{expected}, not {found}")
    if ids.size == 0:
        raise GenerationError("no tokens: the prompt is empty")
    if ids.dtype.kind not in "iu":  # bool, float, or Python objects, among which there may be very large ints
        for token in tokens:
            ids_of_one = whole_number("a token id", token)
            if not 0 <= ids_of_one < vocabulary:
                raise GenerationError(f"token id {_shown(token)} is outside the vocabulary of {vocabulary}")
        ids = np.array([operator.index(token) for token in tokens])
    bad = ids[(ids < 0) | (ids >= vocabulary)]
    if bad.size:
        raise GenerationError(f"token id {bad[0]} is outside the vocabulary of {vocabulary}")
    return ids.astype(np.int32)


def _shown(value: Any) -> str:
    """A value in a message: its repr, or its type where that is long."""
    shown = repr(value)
    return shown if len(shown) <= 40 else type(value).__name__
