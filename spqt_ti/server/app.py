"""The application: routes, and the way of a request to the engine thread and back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from spqt_ti.api import Model
from spqt_ti.errors import SpqtError
from spqt_ti.model.sites import SITES
from spqt_ti.server import page, schema
from spqt_ti.server.answering import Answerer
from spqt_ti.server.engine import Busy, Cancelled, Engine, Job
from spqt_ti.server.errors import ApiError, body_of, handle, response_to
from spqt_ti.server.guard import Guard
from spqt_ti.server.metrics import Metrics
from spqt_ti.server.orders import Order, Piece, Usage
from spqt_ti.server.requests import Orders
from spqt_ti.server.settings import Settings
from spqt_ti.server.shapes import Shape, embeddings_of
from spqt_ti.sparsity.policy import SparsityPolicy

_GONE = 499  # nginx's word for a client that did not wait; nobody reads it
Body = TypeVar("Body")
Result = TypeVar("Result")


class Server:
    """A model behind HTTP; `app` is the ASGI application. `close` ends the engine thread."""

    def __init__(self, model: Model, settings: Settings, policies: Mapping[str, SparsityPolicy] | None = None) -> None:
        self.settings = settings
        self._model, self._policies = model, dict(policies or {})
        self._answerer = Answerer(model, self._policies)
        self._orders = Orders(model.tokenizer, model.llama, settings)
        self.engine = Engine(settings.waiting)
        self.metrics = Metrics(self.engine)
        self._started = int(time.time())
        self.app = self._application()

    def close(self) -> None:
        """Cancel what is at work and end the engine thread."""
        self.engine.close()

    def _application(self) -> Starlette:
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._text, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/tokenizer_info", self._tokenizer_info),
            *(Route(prefix + "/tokenize", self._tokenize, methods=["POST"]) for prefix in ("", "/v1")),
            *(Route(prefix + "/detokenize", self._detokenize, methods=["POST"]) for prefix in ("", "/v1")),
        ]
        middleware = [Middleware(Guard, settings=self.settings)]
        if self.settings.origins:
            allowed = {"allow_origins": self.settings.origins, "allow_methods": ["*"], "allow_headers": ["*"]}
            middleware.append(Middleware(CORSMiddleware, **allowed))  # type: ignore[arg-type]
        handlers: dict[Any, Any] = dict.fromkeys((ApiError, Busy, SpqtError, Exception), handle)
        handlers[HTTPException] = _not_found
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(self.close)

    async def _page(self, request: Request) -> Response:
        return page.response()

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": self.engine.waiting, "busy": self.engine.busy})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def _description(self) -> dict[str, Any]:
        llama, policy = self._model.llama, self._model.policy
        return {
            "id": self.settings.name, "object": "model", "created": self._started, "owned_by": "spqt",
            "max_model_len": llama.context,
            "spqt": {
                "sites": list(SITES), "layers": llama.config.num_hidden_layers, "policies": sorted(self._policies),
                "backend": llama.backend, "chat": self._model.container.chat_template is not None,
                "max_tokens": self.settings.max_tokens, "sparsity": policy.sparsity if policy is not None else 0.0,
            },
        }  # fmt: skip

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def _one_model(self, request: Request) -> Response:
        schema.check_model(request.path_params["name"], self.settings.name)
        return JSONResponse(self._description())

    async def _tokenize(self, request: Request) -> Response:
        asked = await self._body(request, schema.Tokenize)
        schema.check_model(asked.model, self.settings.name)
        if (asked.prompt is None) == (asked.messages is None):
            raise ApiError(400, "give a prompt or messages")
        if asked.messages is not None:
            tokens = await run_in_threadpool(self._orders.encode_chat, asked.messages, asked.add_generation_prompt)
        else:
            tokens = await run_in_threadpool(self._orders.encode, asked.prompt or "", asked.add_special_tokens)
        return JSONResponse({"tokens": tokens, "count": len(tokens), "max_model_len": self._model.llama.context})

    async def _detokenize(self, request: Request) -> Response:
        asked = await self._body(request, schema.Detokenize)
        schema.check_model(asked.model, self.settings.name)
        return JSONResponse({"prompt": await run_in_threadpool(self._orders.decode, asked.tokens)})

    async def _tokenizer_info(self, request: Request) -> Response:
        """As vLLM says it: with this, lm-eval needs no tokenizer of its own."""
        names = self._model.tokenizer.special_names
        named = {name: names.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        return JSONResponse({**named, "chat_template": self._model.container.chat_template})

    async def _chat(self, request: Request) -> Response:
        return await self._complete(request, schema.ChatCompletion, self._orders.chat)

    async def _text(self, request: Request) -> Response:
        return await self._complete(request, schema.Completion, self._orders.text)

    async def _complete(self, request: Request, kind: type, order_of: Callable[[Any], Order]) -> Response:
        asked: Any = await self._body(request, kind)
        schema.check(asked, self.settings.name, self.settings.choices)
        order = await run_in_threadpool(order_of, asked)
        chat = kind is schema.ChatCompletion
        shape = Shape(self._model.tokenizer, self.settings.name, chat, order.logprobs is not None)
        call = Call(self, lambda job: self._answerer.carry_out(order, job))
        if not asked.stream:
            return await call.whole(request, shape.whole)
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return await call.stream(request, shape, usage)

    async def _embeddings(self, request: Request) -> Response:
        asked = await self._body(request, schema.Embeddings)
        schema.check_model(asked.model, self.settings.name)
        order = await run_in_threadpool(self._orders.embeddings, asked)
        call = Call(self, lambda job: self._answerer.embed(order, job))
        return await call.whole(
            request, lambda found, usage: embeddings_of(found, usage, self.settings.name, asked.encoding_format)
        )

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        """The body, no longer than allowed, in the time allowed. Raises ApiError."""
        try:
            body = await asyncio.wait_for(self._bytes(request), self.settings.read_seconds)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the request took longer than {self.settings.read_seconds:g} s to send") from None
        return schema.parsed(body, kind)

    async def _bytes(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.settings.body_bytes:
                raise ApiError(413, f"a request may have {self.settings.body_bytes} bytes", "request_too_large")
        return bytes(body)


class Call:
    """An order on its way: its job, and what the engine thread delivers."""

    def __init__(self, server: Server, work: Callable[[Job], None]) -> None:
        self._server = server
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._done = False
        self._job = Job(work, self._deliver, server.settings.seconds)
        try:
            server.engine.submit(self._job)
        except Busy:
            server.metrics.requests.labels("refused").inc()
            raise

    def _deliver(self, what: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends
            self._loop.call_soon_threadsafe(self._queue.put_nowait, what)

    def end(self) -> None:
        """Nobody reads on: free the engine."""
        if not self._done:
            self._done = True
            self._server.engine.cancel(self._job)
            self._server.metrics.requests.labels("cancelled").inc()

    async def _events(self) -> AsyncGenerator[Any, None]:
        """What comes of the job. Raises what ended it."""
        while True:
            what = await self._queue.get()
            if what is None:
                self._done = True
                return
            if isinstance(what, Cancelled):  # the server ends
                raise ApiError(503, "the server is shutting down", "shutting_down")
            if isinstance(what, Exception):
                self._done = True
                self._server.metrics.requests.labels("failed").inc()
                raise what
            if isinstance(what, Usage):
                self._server.metrics.count(what)
            yield what

    async def whole(self, request: Request, shaped: Callable[[list[Any], Usage], Any]) -> Response:
        """The response at once; the engine is freed where the client goes away meanwhile."""
        self._job.sent()
        try:
            return JSONResponse(await _unless_gone(request, self._collect(shaped)))
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            self.end()

    async def _collect(self, shaped: Callable[[list[Any], Usage], Any]) -> Any:
        *found, usage = [what async for what in self._events()]
        return await run_in_threadpool(shaped, found, usage)

    async def stream(self, request: Request, shape: Shape, usage: bool) -> Response:
        """Server-sent events. What is refused before the first piece is an ordinary error."""
        events = self._events()
        try:
            first = await _unless_gone(request, events.__anext__())
        except ClientDisconnect:
            self.end()
            return Response(status_code=_GONE)
        except BaseException:
            self.end()
            raise
        return _EventStream(self, _lines(shape, first, events, usage, self._job.sent))


class _EventStream(StreamingResponse):
    """A stream that frees the engine however it ends."""

    def __init__(self, call: Call, lines: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(lines, headers=headers, media_type="text/event-stream")
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._call.end()


async def _lines(
    shape: Shape,
    first: Piece | Usage,
    rest: AsyncIterator[Piece | Usage],
    usage: bool,
    sent: Callable[[], None],
) -> AsyncIterator[bytes]:
    """Events as lines; `sent` is called after the first piece's.

    An error after the first piece is an event, too: the status has been sent."""
    begun: set[int] = set()

    def events(what: Piece | Usage) -> list[dict[str, Any]]:
        if isinstance(what, Usage):
            return [shape.last(what)] if usage else []
        opening = [shape.first(what.index)] if shape.chat and what.index not in begun else []
        begun.add(what.index)
        shown = what.text or what.calls or what.finish_reason or what.skipped or shape.logprobs
        return [*opening, *([shape.event(what)] if shown else [])]

    try:
        for event in events(first):
            yield _line(event)
        sent()
        async for what in rest:
            for event in events(what):
                yield _line(event)
    except (ApiError, SpqtError) as error:
        yield _line(body_of(str(error), getattr(error, "status", 400)))
    yield b"data: [DONE]\n\n"


def _line(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


async def _unless_gone(request: Request, result: Coroutine[Any, Any, Result]) -> Result:
    """A result that is waited for as long as the client waits. Raises ClientDisconnect when it no longer does."""
    gone, wanted = asyncio.ensure_future(_disconnected(request)), asyncio.ensure_future(result)
    try:
        await asyncio.wait({gone, wanted}, return_when=asyncio.FIRST_COMPLETED)
        if not wanted.done():
            raise ClientDisconnect
        return wanted.result()
    finally:
        gone.cancel()
        wanted.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return response_to(ApiError(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}"))
