"""What commands print: numbers for people, JSON for programs, errors in one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Sequence
from typing import Any

from spqt_ti.tables import Table, csv_text, print_table


def print_json(content: Any) -> None:
    """JSON on stdout; a number that is not finite, for which JSON has no word, is null.

    Characters are escaped where stdout could not hold them all.
    """
    escaped = not str(getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    print(json.dumps(_finite(content), indent=2, ensure_ascii=escaped, allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def print_rows(arguments: argparse.Namespace, rows: Sequence[Any], table: Table, *notes: str) -> None:
    """Rows (dataclasses or dicts) as --json or --csv ask for, otherwise the table with its notes."""
    fields = [row if isinstance(row, dict) else dataclasses.asdict(row) for row in rows]
    if arguments.json:
        print_json(fields)
    elif arguments.csv:
        print(csv_text(fields), end="")
    else:
        print_table(table, *notes)


def megabytes(count: float) -> str:
    """94_123_456 -> `94.1 MB`."""
    return f"{count / 1e6:.1f} MB"


def for_terminal(text: str) -> str:
    """`text` with control characters but tabs and line ends made visible: a token must not command the terminal."""
    return "".join(_PICTURE.get(c, c) for c in text)


# C0 as Unicode's control pictures; DEL has one of its own, C1 has none.
_PICTURE = {chr(c): chr(0x2400 + c) for c in range(32) if chr(c) not in "\t\n"}
_PICTURE |= {"\x7f": "\u2421"} | {chr(c): "\ufffd" for c in range(0x80, 0xA0)}


def print_error(message: str) -> None:
    """`spqt: error: ...` on stderr, in one line whatever the message holds (names in damaged files, for instance)."""
    line = "".join(c if c.isprintable() else " " for c in message)
    print(f"spqt: error: {line}", file=sys.stderr)


class _Stderr(logging.Handler):
    """Writes to the stderr of the moment, which a caller of `main` may have replaced since."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def print_log() -> None:
    """What the package logs, `spqt: ...` on stderr."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("spqt: %(message)s"))
    log = logging.getLogger("spqt_ti")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
