"""How far long work is: a bar where stderr is a terminal, elsewhere a line of the package's log now and then."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

SECONDS = 15.0  # between lines of the log, and before the first
_LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} gone, {remaining} to go"

_log = logging.getLogger(__name__)


class _Lines:
    """A file for tqdm that logs what it draws."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            _log.info(line)

    def flush(self) -> None:
        """Nothing is held back."""


def progress(items: Iterable[Any] | None = None, *, quiet: bool = False, **options: Any) -> tqdm:
    """A tqdm over `items`, or to be updated by hand; `quiet`: one that shows nothing. `options`: tqdm's `total`,
    `initial`, `desc`, `unit`, ...
    """
    if quiet:
        return tqdm(items, disable=True, **options)
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(items, leave=False, **options)
    pace = {"delay": SECONDS, "mininterval": SECONDS, "maxinterval": SECONDS, "miniters": 1}
    return tqdm(items, leave=False, file=_Lines(), bar_format=_LINE, **pace, **options)


_said: set[str] = set()


def _say(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.info(message)


@contextlib.contextmanager
def says_if_slow(message: str, seconds: float = 1.0) -> Iterator[None]:
    """Log `message`, once in a process, if what is inside is not over after so many seconds."""
    timer = threading.Timer(seconds, _say, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
