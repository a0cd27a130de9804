"""A server of the tiny model "gqa" on a free port, in a thread of the tests' process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import tiny_containers
import uvicorn

import spqt_ti
from spqt_ti.api import Model
from spqt_ti.server.app import Server
from spqt_ti.server.settings import Settings

NAME = "tiny"


def tiny() -> Model:
    """With room for 64 tokens, in f32, as the other tests' runners, whose kernels it shares."""
    return spqt_ti.load(
        tiny_containers.container("gqa"), context=64, threads=tiny_containers.THREADS, exact=True
    )  # fmt: skip


@contextlib.contextmanager
def served(model: Model, policies: Any = None, **settings: Any) -> Iterator[tuple[Server, str]]:
    """(the server, its address) until the end of the block."""
    server = Server(model, Settings(NAME, **settings), policies)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    runner = uvicorn.Server(uvicorn.Config(server.app, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        until(lambda: runner.started)
        yield server, f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        runner.should_exit = runner.force_exit = True
        thread.join(20)
        server.close()
        listening.close()
        model.apply(None)


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait until `true()`; AssertionError where that takes too long."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def outcomes(address: str) -> dict[str, int]:
    """How requests for completions have ended so far."""
    text = httpx.get(f"{address}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("spqt_requests_total{")]
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in lines}
