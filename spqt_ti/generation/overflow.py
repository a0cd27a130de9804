"""What does not fit the context: text whose middle is left out, and conversations without their oldest turns.

A window keeps the start, because attention leans on the first tokens (attention sinks, arXiv 2309.17453) and a system
prompt stands there, and half of the rest. It is computed again as a prompt, so that what follows is exactly what
follows that prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spqt_ti.errors import GenerationError

SINKS = 4  # first tokens that a text keeps at least
CHOICES = ("stop", "slide")
Messages = Sequence[Mapping[str, Any]]
Encode = Callable[[Messages], list[int]]


def checked(on_overflow: str) -> str:
    """One of CHOICES. GenerationError for anything else."""
    if on_overflow not in CHOICES:
        raise GenerationError(f'on_overflow is "stop" or "slide", not {on_overflow!r}')
    return on_overflow


def window(tokens: Sequence[int], keep: int, context: int) -> list[int]:
    """The first `keep` tokens and the last ones, so many that half of the other places stay free.

    GenerationError where the start takes more than half of the context.
    """
    if keep > context // 2 or context - keep < 2:
        raise GenerationError(
            f"the start that is kept has {keep} tokens, more than half of the context of {context}: "
            "take a shorter system prompt, or a longer context"
        )
    return [*tokens[:keep], *tokens[-((context - keep) // 2) :]]


def fitting(tokens: Sequence[int], keep: int, context: int) -> list[int]:
    """The tokens, or the window of them where they are too many."""
    return list(tokens) if len(tokens) <= context else window(tokens, keep, context)


def recent(messages: Messages, encode: Encode, context: int) -> Messages:
    """A conversation without its oldest turns, where it is longer than the context; system messages at its start and
    the last turn stay.

    Turns go in steps of half a context: as long as that is enough, a conversation that grows keeps its beginning, and
    the KV cache what it has of it.
    """
    total = len(encode(messages))
    if total <= context:
        return messages
    step = max(1, context // 2)
    most = total - -(-(total - context) // step) * step
    head = _system(messages)
    starts = [at for at, message in enumerate(messages) if at > len(head) and message["role"] == "user"]
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if len(encode([*head, *messages[starts[middle] :]])) <= most:
            high = middle
        else:
            low = middle + 1
    return [*head, *messages[starts[low] :]] if starts else messages


def start_of(messages: Messages, encode: Encode) -> int:
    """How many tokens a conversation begins with before its first message of a user: the system prompt's."""
    tokens = encode(messages)
    others = encode([*_system(messages), {"role": "user", "content": "?"}])
    pairs = enumerate(zip(tokens, others, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(tokens), len(others)))
    return max(SINKS, same)


def _system(messages: Messages) -> list[Mapping[str, Any]]:
    count = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[:count])
