"""Where evaluations run. Results come as they are ready, and are the same everywhere: an item's depends on it alone.

On CPUs of different kinds the runner's rounding may differ, as it does between any two such machines.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

from spqt_ti.errors import ExecutionError
from spqt_ti.memory import available_memory
from spqt_ti.parallel.study import F64Array, Item, Request, evaluate
from spqt_ti.threads import available_threads

__all__ = ["Executor", "InProcess", "LocalProcesses", "in_order", "processes_for"]

_ATTEMPTS = 3  # pools, where workers die

Result = tuple[int, F64Array]


class Executor(Protocol):
    """Evaluates items of a request."""

    def run(self, request: Request, items: Sequence[Item]) -> Iterator[Result]:
        """(index of the item, its result), in any order. Errors of a study pass through."""


def in_order(results: Iterator[Result]) -> Iterator[F64Array]:
    """The results in the order of their items, each as soon as those before it are there."""
    found: dict[int, F64Array] = {}
    following = 0
    for index, result in results:
        found[index] = result
        while following in found:
            yield found.pop(following)
            following += 1


class InProcess:
    """One after the other, here."""

    def run(self, request: Request, items: Sequence[Item]) -> Iterator[Result]:
        """See Executor."""
        for index, item in enumerate(items):
            yield index, evaluate(request, item)


class LocalProcesses:
    """In `count` processes of this machine, each with CPUs of its own where the system lets one choose.

    They stay for the next request, until `close`. A process that dies is replaced, with the items that were lost;
    ExecutionError when that happens for the third time.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ExecutionError(f"one process or more is needed, not {count}")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, request: Request, items: Sequence[Item]) -> Iterator[Result]:
        """See Executor."""
        todo = dict(enumerate(items))
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(BrokenProcessPool):
                for index, result in self._results(request, todo):
                    del todo[index]
                    yield index, result
            if not todo:
                return
        raise ExecutionError(
            f"worker processes die again and again, {len(todo)} of {len(items)} items are left; is there enough "
            "memory? Fewer processes (--jobs) need less"
        )

    def close(self) -> None:
        """End the processes; another request starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _results(self, request: Request, todo: dict[int, Item]) -> Iterator[Result]:
        try:
            pool = self._pool = self._pool or self._started()
            futures = {pool.submit(evaluate, request, item): index for index, item in todo.items()}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # GeneratorExit too: what nobody waits for is not to go on
            self.close()
            raise

    def _started(self) -> ProcessPoolExecutor:
        context = get_context("spawn")  # a forked process would not have the threads of the kernels' runtime
        numbers = context.Queue()
        for number in range(self.count):
            numbers.put(number)
        return ProcessPoolExecutor(self.count, context, _begin, (numbers, self.count))


def processes_for(model_bytes: int) -> int:
    """Processes of one thread that CPUs and free memory allow, each with a model of `model_bytes` of its own; 1 or
    more.
    """
    free = available_memory()
    room = available_threads() if free is None else int(free // max(1, 1.5 * model_bytes))
    return max(1, min(available_threads(), room))


def _begin(numbers: Any, count: int) -> None:
    """In a new process: Ctrl-C is its parent's to handle, and it keeps to its share of the CPUs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        number = numbers.get()
        os.sched_setaffinity(0, set(cpus[number % len(cpus) :: count] or cpus))
