"""Ctrl-C, SIGTERM, SIGHUP and SIGQUIT as exceptions that unwind cleanly."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn

# What ends a program from outside: asked to, its terminal gone, and Ctrl-\\. Not all systems have all of them.
_ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]


@contextlib.contextmanager
def terminate_cleanly() -> Iterator[None]:
    """These signals end the program like an exception, as SIGINT does, so that half-written files are removed.

    One that the caller ignores (nohup) stays ignored.
    """

    def stop(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = {}
    try:
        for number in _ENDINGS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread: the program around us decides
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Deliver signals afterwards: one that hits the import of a C extension is swallowed, or becomes an ImportError."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_ENDINGS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
