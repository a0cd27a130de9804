"""Errors as OpenAI's API words them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from spqt_ti.errors import SpqtError
from spqt_ti.server.engine import Busy


class ApiError(Exception):
    """What a client is told: an HTTP status and a message. `code`: a word for programs."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


def body_of(message: str, status: int, code: str | None = None, param: str | None = None) -> dict[str, object]:
    """The JSON of an error."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def response_to(error: Exception) -> Response:
    """The response for an error: a 400 for what spqt_ti refuses, a 500 without details for what nobody foresaw."""
    headers: Mapping[str, str] = {}
    if isinstance(error, ApiError):
        status, body = error.status, body_of(error.message, error.status, error.code, error.param)
        if status == 401:
            headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, Busy):
        status, body = 429, body_of(str(error), 429, "queue_full")
        headers = {"Retry-After": str(error.seconds)}
    elif isinstance(error, SpqtError):
        status, body = 400, body_of(str(error), 400)
    else:
        status, body = 500, body_of(f"internal error ({type(error).__name__}); the server's log has more", 500)
    return JSONResponse(body, status, headers)


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's way to ask `response_to`."""
    return response_to(error)
