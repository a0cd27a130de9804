"""Who may ask: Host and Origin against DNS rebinding and strange pages, the API key."""

from __future__ import annotations

import hmac
import ipaddress

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from spqt_ti.server.errors import ApiError, response_to
from spqt_ti.server.settings import Settings

_OPEN = {"/", "/health"}  # without a key: the page asks for it, and a health check has none


class Guard:
    """Middleware that answers for the application where a request may not pass.

    A page on the web whose name its owner points to 127.0.0.1 (DNS rebinding) sends its own name as Host, so only
    addresses, `localhost` and `settings.hosts` pass. Any page may send requests; a browser says in Origin which page it
    was, so only the server's own and `settings.origins` pass.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await response_to(error)(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._known_host(host):
            raise ApiError(
                403, f"the Host header {host[:100]!r} is no address, nor localhost: start with --allow-host", "host"
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._settings.origins and origin != f"{scope['scheme']}://{host}":
            raise ApiError(403, f"pages of {origin[:100]!r} may not ask: start with --allow-origin", "origin")
        if self._settings.api_key is not None and scope["path"] not in _OPEN and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            # Bytes: compare_digest refuses text beyond ASCII.
            same = hmac.compare_digest(key.strip().encode(), self._settings.api_key.encode())
            if scheme.lower() != "bearer" or not same:
                raise ApiError(401, "give the API key: Authorization: Bearer KEY", "invalid_api_key")

    def _known_host(self, host: str) -> bool:
        name = host.rsplit("]", 1)[0][1:] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in {"localhost", *(known.lower() for known in self._settings.hosts)}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
