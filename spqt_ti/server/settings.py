"""What a server allows: who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass

from spqt_ti.errors import ServerError
from spqt_ti.generation.embedding import checked as checked_pooling
from spqt_ti.generation.overflow import checked


@dataclass(frozen=True)
class Settings:
    """Limits and doors of a server.

    `name`: what the model is called in requests. `api_key`: what requests must carry; None: nothing. `hosts`: names
    that the Host header may have beside `localhost` and addresses. `origins`: web pages of other origins that may
    ask. `waiting`: requests that may wait for the engine. `body_bytes`: longest request. `max_tokens`: longest answer,
    and what is made where a request does not say; `choices`: answers per request, over all of its prompts. `seconds`:
    longest time on the engine; `read_seconds`: longest time that a client may take to send a request.
    `on_overflow`: what a full context does (see generation/overflow.py); "stop" refuses prompts that are too long.
    `pooling`: how embeddings are made of hidden states (see generation/embedding.py).

    Raises ServerError for values out of range.
    """

    name: str
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    waiting: int = 32
    body_bytes: int = 4 << 20
    max_tokens: int = 4096
    choices: int = 128
    seconds: float = 600.0
    read_seconds: float = 30.0
    on_overflow: str = "stop"
    pooling: str = "mean"

    def __post_init__(self) -> None:
        checked(self.on_overflow)
        checked_pooling(self.pooling)
        for name in ("waiting", "body_bytes", "max_tokens", "choices", "seconds", "read_seconds"):
            if not getattr(self, name) > 0:
                raise ServerError(f"{name.replace('_', ' ')} must be above 0, not {getattr(self, name)}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ServerError("an API key is printable ASCII, and not empty: it travels in an HTTP header")
        for origin in self.origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ServerError(f"an origin is http(s)://HOST or http(s)://HOST:PORT, not {origin!r}")
