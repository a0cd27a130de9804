"""The line of jobs, without a model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from spqt_ti.errors import ServerError
from spqt_ti.server.engine import Busy, Cancelled, Engine, Job
from spqt_ti.server.settings import Settings


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(2)
    yield made
    made.close()


def held(engine: Engine) -> tuple[Job, threading.Event]:
    """A job that is at work until the event is set, or until it is cancelled."""
    begun, free = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        begun.set()
        while not free.wait(0.001):
            job.check()

    job = Job(work, lambda what: None, 60)
    engine.submit(job)
    assert begun.wait(10)
    return job, free


def job(results: list[Any], done: threading.Event, work: Any = lambda job: None) -> Job:
    def deliver(what: Any) -> None:
        results.append(what)
        done.set()

    return Job(work, deliver, 60)


def test_a_full_line_is_refused_until_somebody_leaves_it(engine: Engine) -> None:
    current, free = held(engine)
    results: list[Any] = []
    done = threading.Event()
    first, second, third = (job(results, done) for _ in range(3))
    engine.submit(first)
    engine.submit(second)
    with pytest.raises(Busy, match="2 requests are waiting") as refused:
        engine.submit(third)
    assert refused.value.seconds >= 1
    engine.cancel(first)
    assert engine.waiting == 1
    engine.submit(third)
    free.set()
    assert done.wait(10)
    del current


def test_a_cancelled_job_frees_the_engine(engine: Engine) -> None:
    current, _ = held(engine)
    results: list[Any] = []
    done = threading.Event()
    engine.submit(job(results, done))
    engine.cancel(current)
    assert done.wait(10)
    assert results == [None]


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize(("raised", "delivered"), [(ZeroDivisionError, ZeroDivisionError), (Panic, RuntimeError)])
def test_an_error_is_delivered_and_the_next_job_runs(
    engine: Engine, raised: type[BaseException], delivered: type[Exception]
) -> None:
    def fail(job: Job) -> None:
        raise raised

    results: list[Any] = []
    done = threading.Event()
    engine.submit(job(results, threading.Event(), fail))
    engine.submit(job(results, done))
    engine_done = done.wait(10)
    assert engine_done
    assert [type(result) for result in results] == [delivered, type(None)]


def test_closing_cancels_all() -> None:
    engine = Engine(2)
    held(engine)
    results: list[Any] = []
    engine.submit(job(results, threading.Event()))
    engine.close()
    assert [type(result) for result in results] == [Cancelled]
    with pytest.raises(Busy):
        engine.submit(job([], threading.Event()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"waiting": 0}, "waiting must be above 0"), ({"api_key": "é"}, "printable ASCII"), ({"api_key": ""}, "not empty"),
     ({"origins": ("here",)}, "an origin is"), ({"seconds": -1.0}, "seconds must be")],
)  # fmt: skip
def test_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        Settings("m", **settings)
