"""The engine thread: one job at a time, a bounded line of those that wait."""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Callable
from typing import Any

Deliver = Callable[[Any], None]
_SENDING_SECONDS = 0.02


class Cancelled(Exception):  # noqa: N818 (no error: somebody did not want the result)
    """Raised inside a job that nobody waits for any more."""


class Busy(Exception):  # noqa: N818
    """The line is full; `seconds` from now there may be room."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting already: try again in about {seconds} s")
        self.seconds = seconds


class Job:
    """Something to do on the engine thread. `deliver` is told what comes of it: results, then None at the end, or the
    exception that ended it.
    """

    def __init__(self, work: Callable[[Job], None], deliver: Deliver, most_seconds: float) -> None:
        self.work, self.deliver = work, deliver
        self._cancelled, self._sent = threading.Event(), threading.Event()
        self._most_seconds, self._begun = most_seconds, math.inf

    def cancel(self) -> None:
        """End it at its next `check`, or before it begins. From any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """True after `cancel`."""
        return self._cancelled.is_set()

    def begin(self) -> None:
        """The clock starts: waiting in line does not count."""
        self._begun = time.monotonic()

    def sent(self) -> None:
        """The first result is with the client, or need not be there early."""
        self._sent.set()

    def wait_until_sent(self) -> None:
        """Let the first result be sent before more is computed; not for long, because a client may be slow."""
        self._sent.wait(_SENDING_SECONDS)

    def check(self) -> None:
        """Raise Cancelled where nobody waits for it any more."""
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def overdue(self) -> bool:
        """True where it has had the engine for as long as it may."""
        return time.monotonic() - self._begun > self._most_seconds


class Engine:
    """Runs jobs one after another in a thread of its own. `waiting`: how many may stand in line."""

    def __init__(self, waiting: int) -> None:
        self._most = waiting
        self._line: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._current: Job | None = None
        self._closed = False
        self._typical_seconds = 1.0  # of a job: a moving average
        self._thread = threading.Thread(target=self._run, name="spqt-engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job in line. Raises Busy where that is full."""
        with self._changed:
            if self._closed:
                raise Busy(len(self._line), 1)
            if len(self._line) >= self._most:
                raise Busy(len(self._line), max(1, math.ceil(self._typical_seconds)))
            self._line.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more: it leaves the line at once, or the engine at its next check."""
        job.cancel()
        with self._changed:
            if job in self._line:
                self._line.remove(job)

    @property
    def waiting(self) -> int:
        """Jobs in line."""
        return len(self._line)

    @property
    def busy(self) -> bool:
        """True while a job is at work."""
        return self._current is not None

    def close(self, seconds: float = 5.0) -> None:
        """Cancel everything and wait for the thread, at most so long."""
        with self._changed:
            self._closed = True
            for job in (*self._line, *([self._current] if self._current else [])):
                job.cancel()
            self._changed.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._line and not self._closed:
                    self._changed.wait()
                if not self._line:
                    return
                job = self._current = self._line.popleft()
            try:
                self._do(job)
            finally:
                self._current = None

    def _do(self, job: Job) -> None:
        start = time.monotonic()
        job.begin()
        try:
            job.check()
            job.work(job)
        except Cancelled:
            job.deliver(Cancelled())
        except Exception as error:  # whatever it is, the next job must have its turn
            job.deliver(error)
        except BaseException as error:  # a panic of a library in Rust: it would end the thread, and so every request
            job.deliver(RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            job.deliver(None)
        self._typical_seconds += 0.2 * (time.monotonic() - start - self._typical_seconds)
