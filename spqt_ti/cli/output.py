"""What commands print: numbers for people, JSON for programs, errors in one line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any


def print_json(content: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def megabytes(count: float) -> str:
    """94_123_456 -> `94.1 MB`."""
    return f"{count / 1e6:.1f} MB"


def print_error(message: str) -> None:
    """`spqt: error: ...` on stderr, in one line whatever the message holds (names in damaged files, for instance)."""
    line = "".join(c if c.isprintable() else " " for c in message)
    print(f"spqt: error: {line}", file=sys.stderr)


def print_log() -> None:
    """What the package logs, `spqt: ...` on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("spqt: %(message)s"))
    log = logging.getLogger("spqt_ti")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
