"""Who may ask: the middleware in front of an application that always answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from spqt_ti.server.guard import Guard
from spqt_ti.server.settings import Settings


def status(settings: Settings, path: str = "/v1/models", method: str = "GET", **headers: str) -> int:
    """The status of a request with these headers."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "scheme": "http", "path": path, "method": method, "headers": raw}
    asyncio.run(Guard(application, settings)(scope, None, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost:8080", 200), ("127.0.0.1", 200), ("[::1]:8080", 200), ("192.168.1.7:80", 200), ("box.lan", 200),
     ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[x]", 403)],
)  # fmt: skip
def test_hosts(host: str, expected: int) -> None:
    assert status(Settings("m", hosts=("Box.lan",)), host=host) == expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [("http://localhost:8080", 200), ("https://ui.example", 200), ("https://localhost:8080", 403),
     ("http://localhost:9", 403), ("null", 403), ("http://ui.example", 403)],
)  # fmt: skip
def test_origins(origin: str, expected: int) -> None:
    settings = Settings("m", origins=("https://ui.example",))
    assert status(settings, host="localhost:8080", origin=origin) == expected


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [("Bearer secret", 200), ("bearer secret", 200), ("Bearer secre", 401), ("Bearer ", 401), ("secret", 401),
     ("Basic secret", 401), ("", 401), ("Bearer s\u00e9cret", 401)],
)  # fmt: skip
def test_keys(authorization: str, expected: int) -> None:
    settings = Settings("m", api_key="secret")
    assert status(settings, host="localhost", authorization=authorization) == expected
    assert status(settings, "/health", host="localhost") == 200
    assert status(settings, "/metrics", host="localhost") == 401
