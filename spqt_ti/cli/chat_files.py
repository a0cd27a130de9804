"""What `spqt chat` keeps in files: conversations that the user saves, and the lines that were typed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from spqt_ti import bounded_json
from spqt_ti.atomic import locked, written_whole
from spqt_ti.cache import private_folder
from spqt_ti.errors import CacheError, GenerationError
from spqt_ti.paths import expanded

FORMAT = 1
MOST_LINES = 1000
_MOST_BYTES = 16 << 20  # of a conversation; a context of a million tokens has about 4 MB of text
_LONGEST_LINE = 4096  # characters: longer ones are pasted, and not kept
_ROLES = ("system", "user", "assistant")


def save_conversation(name: str, messages: Sequence[dict[str, str]]) -> Path:
    """Write messages (`role`, `content`) to a JSON file that its owner alone can read; returns where.

    GenerationError where that fails, or without a name.
    """
    path = _path(name)
    text = json.dumps({"format": FORMAT, "messages": list(messages)}, ensure_ascii=False, indent=1)
    try:
        _write_private(path, text)
    except (OSError, ValueError) as error:
        raise GenerationError(f"{path}: cannot write the conversation: {error}") from error
    return path


def load_conversation(name: str) -> list[dict[str, str]]:
    """The messages that `save_conversation` wrote. GenerationError for any other file, or without a name."""
    path = _path(name)
    try:
        fields = bounded_json.read_object(path, _MOST_BYTES)
        if fields.get("format") != FORMAT:
            raise ValueError(f"format is {fields.get('format')!r:.40}, not {FORMAT}")
        messages = fields.get("messages")
        if not isinstance(messages, list):
            raise ValueError("messages are no list")
        return [_message(i, message) for i, message in enumerate(messages)]
    except (OSError, ValueError) as error:
        raise GenerationError(f"{path}: not a conversation that /save wrote: {error}") from error


@contextlib.contextmanager
def line_history(keep: bool = True) -> Iterator[None]:
    """Line editing, where the system has it; with `keep` the lines of earlier conversations come back, and those typed
    inside are kept for the next one, in a private file of the cache folder.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    path = _history_path() if keep else None
    for line in _lines(path):
        readline.add_history(line)
    before = readline.get_current_history_length()
    try:
        yield
    finally:
        typed = range(before + 1, readline.get_current_history_length() + 1)
        if path is not None:
            _keep(path, [readline.get_history_item(i) for i in typed])


def _keep(path: Path, typed: Sequence[str]) -> None:
    """Put lines behind those that are there, also those that another conversation has kept meanwhile. A folder that
    cannot be written keeps nothing: nobody is to lose a conversation for it.
    """
    lines = [line for line in typed if line and len(line) <= _LONGEST_LINE and "\n" not in line]
    if lines:
        with contextlib.suppress(OSError), locked(path):
            _write_private(path, "".join(f"{line}\n" for line in [*_lines(path), *lines][-MOST_LINES:]))


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        text = bounded_json.read_bytes(path, (_LONGEST_LINE * 4 + 1) * MOST_LINES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return []
    return [line for line in text.split("\n") if line.isprintable() and line][-MOST_LINES:]


def _history_path() -> Path | None:
    with contextlib.suppress(OSError, CacheError):
        return private_folder("chat") / "history"
    return None


def _write_private(path: Path, text: str) -> None:
    """Write a whole text file that its owner alone can read."""
    with written_whole(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)


def _path(name: str) -> Path:
    if not name:
        raise GenerationError("the name of a file is missing")
    return expanded(name)


def _message(index: int, message: object) -> dict[str, str]:
    """The message, checked. ValueError says which is none."""
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        raise ValueError(f"message {index} is no object of role and content")
    role, content = message["role"], message["content"]
    if role not in _ROLES[bool(index) :]:
        raise ValueError(f"message {index} has the role {role!r:.40}, not {' or '.join(_ROLES[bool(index) :])}")
    if not isinstance(content, str):
        raise ValueError(f"message {index} has no text")
    return {"role": role, "content": content}
