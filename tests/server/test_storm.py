"""Clients that come, wait, and go away."""

from __future__ import annotations

import gc
import random
import threading
import time
from typing import Any

import httpx
import pytest
import served

from spqt_ti.api import Model
from spqt_ti.server.app import Server

LONG: Any = {"prompt": "The quick", "max_tokens": 60, "temperature": 0, "logit_bias": {"0": -100}}


def stream(address: str, **more: Any) -> Any:
    return httpx.stream("POST", f"{address}/v1/completions", json={**LONG, "stream": True, **more}, timeout=60)


def test_a_full_line_is_told_when_to_come_again(server: Server, address: str, model: Model) -> None:
    with model.llama.exclusive():  # the engine waits for it
        answers: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(
                    httpx.post(f"{address}/v1/completions", json=LONG, timeout=60).status_code
                )
            )
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        served.until(lambda: server.engine.waiting == 4 and server.engine.busy)
        refused = httpx.post(f"{address}/v1/completions", json=LONG)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert "4 requests are waiting" in refused.json()["error"]["message"]
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 5


@pytest.mark.parametrize("place", ["at work", "in line"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_place(
    server: Server, address: str, model: Model, place: str, streamed: bool
) -> None:  # fmt: skip
    before = served.outcomes(address).get("cancelled", 0)
    with model.llama.exclusive():
        if place == "in line":
            first = threading.Thread(target=lambda: httpx.post(f"{address}/v1/completions", json=LONG, timeout=60))
            first.start()
            served.until(lambda: server.engine.busy)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json={**LONG, "stream": streamed}, timeout=0.3)
        served.until(lambda: server.engine.waiting == 0)
        served.until(lambda: served.outcomes(address).get("cancelled", 0) == before + 1)
    served.until(lambda: not server.engine.busy)


def test_time_is_limited(model: Model) -> None:
    with served.served(model, seconds=1e-9, max_tokens=60) as (_, address):
        found = httpx.post(f"{address}/v1/completions", json=LONG, timeout=60).json()
        assert found["usage"]["completion_tokens"] == 1
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["spqt"]["cut_by_time"]
        scored = {"prompt": [5, 6], "echo": True, "logprobs": 1, "max_tokens": 0}
        refused = httpx.post(f"{address}/v1/completions", json=scored, timeout=60)
        assert (refused.status_code, "took too long" in refused.text) == (400, True)


def test_a_server_that_ends_lets_clients_go(model: Model) -> None:
    with served.served(model, max_tokens=60) as (server, address), stream(address) as response:
        assert next(response.iter_lines()).startswith("data:")
        server.close()
    assert not server.engine.busy


def storm(address: str, requests: int, clients: int) -> dict[str, int]:
    """How requests from several clients end; about a third go away after some events. Those refused try again."""
    ends: dict[str, int] = {"answered": 0, "left": 0, "meant to stay": 0}
    lock, numbers = threading.Lock(), iter(range(requests))

    def attempt(body: dict[str, Any], leaves: int | None) -> str | None:
        with stream(address, **body) as response:
            if response.status_code == 429:
                return None
            assert response.status_code == 200
            for seen, line in enumerate(response.iter_lines()):
                if line == "data: [DONE]":
                    return "answered"
                if seen == leaves:
                    return "left"
        raise AssertionError("the stream ended without its last event")

    def one(dice: random.Random) -> None:
        body = {"prompt": [dice.randrange(3, 60) for _ in range(dice.randrange(1, 20))], "temperature": dice.random()}
        body |= {"max_tokens": dice.randrange(1, 40)} | ({"spqt": {"policy": "mine"}} if dice.random() < 0.3 else {})
        leaves = dice.randrange(1, 12) if dice.random() < 0.35 else None
        while (end := attempt(body, leaves)) is None:
            time.sleep(0.05)
        with lock:
            ends[end] += 1
            ends["meant to stay"] += leaves is None

    def client() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            one(random.Random(number))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    return ends


def own_threads() -> int:
    """Threads beside those of anyio's pool, which are kept for a while, 40 at most."""
    return sum("AnyIO" not in thread.name for thread in threading.enumerate())


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("requests", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_clients_that_come_and_go(
    server: Server, address: str, model: Model, requests: int
) -> None:  # fmt: skip
    expected = model.generate("The quick", max_new_tokens=6).text
    counted = dict(served.outcomes(address))
    threads = own_threads()
    ends = storm(address, requests, 8)
    assert ends["answered"] + ends["left"] == requests
    assert ends["answered"] >= ends["meant to stay"]
    served.until(lambda: not server.engine.busy and server.engine.waiting == 0)
    found = served.outcomes(address)
    assert found.get("failed", 0) == counted.get("failed", 0)
    assert found["answered"] - counted.get("answered", 0) >= ends["answered"]
    after = httpx.post(f"{address}/v1/completions", json={**LONG, "max_tokens": 6, "logit_bias": None}).json()
    assert after["choices"][0]["text"] == expected
    served.until(lambda: own_threads() <= threads)
    gc.collect()
    if requests > 100:
        before = resident()
        storm(address, requests, 8)
        assert resident() - before < 8 << 20
