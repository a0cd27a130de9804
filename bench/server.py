"""`spqt serve` in a process of its own: time to the first token beside the call in one process, and what clients that
come and go leave behind.

    python bench/server.py smollm2-135m                     # half a minute on two cores
    python bench/server.py smollm2-135m --requests 0        # the first table alone

Prompts are all different, so that nothing is reused. Rounds alternate between the server and the call. Then `--clients`
threads send `--requests`; a third of them go away after some events. Exit code 1 where a slot is lost, a request fails,
memory grows by more than 8 MB, or descriptors or threads stay behind. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import spqt_ti

WORDS = (  # noqa: SIM905
    "the quick brown fox jumps over a lazy dog and tells every child in town about rivers hills bread and rain"
).split()
MOST_GROWTH = 8 << 20
ENDS = ("answered", "left", "refused")


class Client:
    """Requests to a server on this machine, over one connection while it lasts."""

    def __init__(self, port: int, model: str) -> None:
        self._connection, self._model = http.client.HTTPConnection("127.0.0.1", port, timeout=120), model

    def stream(self, text: str, tokens: int, leaves: int | None = None) -> tuple[str, float]:
        """(how it ended: one of ENDS, seconds to the first text). `leaves`: after how many events the client goes."""
        body = {
            "model": self._model, "messages": [{"role": "user", "content": text}], "temperature": 0,
            "max_tokens": tokens, "stream": True,
        }  # fmt: skip
        start, first, seen = time.perf_counter(), 0.0, 0
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body))
        response = self._connection.getresponse()
        if response.status == 429:
            response.read()
            return "refused", 0.0
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        while (line := response.readline()) != b"data: [DONE]\n":
            if not line:
                raise RuntimeError("the stream ended without its last event")
            if line.startswith(b"data: "):
                seen += 1
                if not first and b'"role"' not in line:
                    first = time.perf_counter() - start
                if seen == leaves:
                    response.close()
                    self._connection.close()
                    return "left", first
        response.read()
        return "answered", first

    def get(self, path: str) -> str:
        """The text at a path."""
        self._connection.request("GET", path)
        return self._connection.getresponse().read().decode()


class Server:
    """`spqt serve` with this model."""

    def __init__(self, model: str, threads: int | None) -> None:
        command = [sys.executable, "-m", "spqt_ti", "serve", model, "--port", "0", "--name", "bench"]
        command += ["--threads", str(threads)] if threads else []
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/ ", line):
                self.port = int(found[1])
                break
            print(line, end="", file=sys.stderr)
        else:
            raise RuntimeError("the server did not start")

    def client(self) -> Client:
        """A connection of its own."""
        return Client(self.port, "bench")

    def usage(self) -> tuple[int, int, int]:
        """(resident bytes, open descriptors, threads) of its process."""
        folder = Path(f"/proc/{self._process.pid}")
        fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return int(fields["VmRSS"].split()[0]) * 1024, len(os.listdir(folder / "fd")), int(fields["Threads"])

    def idle(self, seconds: float = 20.0) -> bool:
        """True as soon as nothing is at work nor waits; False where that takes too long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            health = json.loads(self.client().get("/health"))
            if not health["busy"] and not health["waiting"]:
                return True
            time.sleep(0.05)
        return False

    def outcomes(self) -> dict[str, int]:
        """How requests have ended, as /metrics counts."""
        found = re.findall(
            r'^spqt_requests_total\{outcome="(\w+)"\} (\S+)', self.client().get("/metrics"), re.MULTILINE
        )
        return {name: int(float(value)) for name, value in found}

    def close(self) -> None:
        """End it as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)


def prompt(dice: random.Random) -> str:
    """Different from its first word on, of the same length."""
    return " ".join([str(dice.randrange(10_000, 99_999)), *dice.choices(WORDS, k=20)])


def first_tokens(server: Server, model: spqt_ti.Model, rounds: int) -> None:
    """Print the medians of both."""
    client, dice = server.client(), random.Random(1)
    served, called = [], []
    for number in range(rounds + 3):
        over_http = client.stream(prompt(dice), 4)[1]
        start = time.perf_counter()
        stream = model.stream([{"role": "user", "content": prompt(dice)}], max_new_tokens=4)
        next(piece for piece in stream if piece.text)
        in_process = time.perf_counter() - start
        stream.close()  # type: ignore[attr-defined]
        if number >= 3:  # warmed up
            served.append(over_http)
            called.append(in_process)
    http_p50, call_p50 = statistics.median(served), statistics.median(called)
    print(f"first token, p50 of {rounds}: server {1e3 * http_p50:.2f} ms, call {1e3 * call_p50:.2f} ms, "
          f"{http_p50 / call_p50:.3f}x")  # fmt: skip


def storm(server: Server, requests: int, clients: int, seed: int) -> dict[str, int]:
    """How requests from `clients` threads ended, as the clients saw it."""
    ends = dict.fromkeys((*ENDS, "failed"), 0)
    lock, numbers = threading.Lock(), iter(range(requests))

    def run(dice: random.Random) -> None:
        client = server.client()
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            leaves = dice.randrange(1, 20) if dice.random() < 0.35 else None
            try:
                end = client.stream(prompt(dice), dice.randrange(8, 48), leaves)[0]
            except (RuntimeError, OSError, http.client.HTTPException) as error:
                print(f"failed: {error}", file=sys.stderr)
                end, client = "failed", server.client()
            with lock:
                ends[end] += 1

    threads = [threading.Thread(target=run, args=[random.Random(seed + number)]) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def endurance(server: Server, requests: int, clients: int) -> bool:
    """Print what is left of many requests; False where something is."""
    storm(server, 4 * clients, clients, 100)
    server.idle()
    before = server.usage()
    start = time.monotonic()
    ends = storm(server, requests, clients, 200)
    seconds = time.monotonic() - start
    idle = server.idle()
    end = time.monotonic() + 5
    while (after := server.usage())[1] > before[1] and time.monotonic() < end:
        time.sleep(0.1)  # connections that have just been closed
    growth, descriptors, threads = (new - old for new, old in zip(after, before, strict=True))
    print(f"{requests} requests of {clients} clients in {seconds:.1f} s: {ends}; the server counts {server.outcomes()}")
    print(f"left behind: {growth / 1e6:+.2f} MB of {after[0] / 1e6:.0f}, {descriptors:+d} descriptors, "
          f"{threads:+d} threads, {'idle' if idle else 'NOT IDLE'}")  # fmt: skip
    return idle and not ends["failed"] and growth < MOST_GROWTH and descriptors <= 0 and threads <= 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    model: Any = spqt_ti.load(arguments.model, threads=arguments.threads)
    model.generate("warm", max_new_tokens=4)
    server = Server(arguments.model, arguments.threads)
    try:
        if arguments.rounds:
            first_tokens(server, model, arguments.rounds)
        return 0 if not arguments.requests or endurance(server, arguments.requests, arguments.clients) else 1
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
