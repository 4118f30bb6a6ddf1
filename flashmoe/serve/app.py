"""The OpenAI-compatible endpoint: routes over one engine.

Every request becomes a `GenerateRequest` with an id of its own; the engine decodes them together. A client that goes
away has its request cancelled within a layer. Nothing here touches a model: `Engine` (serve/engine.py) does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from backends.chat_format.events import Said
from backends.interface import Delta, EngineError, Event, Finished, GenerateRequest
from flashmoe.openai.requests import BadRequestError, CompletionRequest, parse_completion
from flashmoe.openai.responses import Shape, finish_reason, usage_of
from flashmoe.serve.engine import BusyError, Engine

MAX_BODY = 4 * 1024 * 1024
BODY_S = 60.0
"""A body that takes longer to arrive is given up: a client that dribbles must not keep a connection for ever."""
HEARTBEAT_S = 15.0
"""A comment line goes out this often while a prompt is prefilled, so that proxies keep the connection."""

_STATUS = {
    "bad_request": 400, "prompt_too_long": 400, "bad_template": 400, "unsupported": 400, "context_too_large": 400,
    "engine_died": 503, "no_memory": 503, "not_found": 503,
}  # fmt: skip
log = logging.getLogger(__name__)


def error(status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
          code: str | None = None, headers: dict[str, str] | None = None) -> JSONResponse:  # fmt: skip
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


def keys_as_sent(key: str) -> tuple[bytes, ...]:
    """The bytes that a client may send for a key: most write it as UTF-8, some as Latin-1."""
    forms = {key.encode()}
    with contextlib.suppress(UnicodeEncodeError):
        forms.add(key.encode("latin-1"))
    return tuple(forms)


class _Refusal(Exception):
    """Ends a route early with this response."""

    def __init__(self, response: Response) -> None:
        self.response = response


class Server:
    """The routes and what they share: the engine and, beyond loopback, a key."""

    def __init__(self, engine: Engine, api_key: str | None) -> None:
        self.engine = engine
        self._keys = keys_as_sent(api_key) if api_key else ()
        self.started = int(time.time())

    # ---- what every route checks --------------------------------------------------------------------------------

    def _authorise(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        if not any(hmac.compare_digest(sent, key) for key in self._keys):
            raise _Refusal(
                error(
                    401,
                    "this server needs the API key it was started with, as 'Authorization: Bearer …'",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            )

    async def _body(self, request: Request) -> Any:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # also keeps web pages from posting here without asking first
            raise _Refusal(error(415, "send the request as Content-Type: application/json"))
        too_large = _Refusal(error(413, f"the request body is larger than {MAX_BODY // 2**20} MiB"))
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY:
            raise too_large
        raw = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    raw += chunk
                    if len(raw) > MAX_BODY:
                        raise too_large
        except TimeoutError:
            raise _Refusal(error(408, f"the request body did not arrive within {BODY_S:g} seconds")) from None
        try:
            return msgspec.json.decode(bytes(raw))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise _Refusal(error(400, f"the request body is not valid JSON: {e}")) from None

    # ---- routes -------------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The loaded model, as a list of one."""
        self._authorise(request)
        return JSONResponse({"object": "list", "data": [self._model_object()]})

    async def model(self, request: Request) -> Response:
        """One model's name, context and architecture."""
        self._authorise(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        info = self.engine.info
        return {
            "id": self.engine.model_id, "object": "model", "created": self.started, "owned_by": "local",
            "meta": {"architecture": info.architecture, "quant": info.quant, "n_ctx": info.n_ctx,
                     "n_ctx_train": info.n_ctx_train, "lossy": info.lossy},
        }  # fmt: skip

    def _check_model(self, name: str | None) -> None:
        if name not in (None, "", "default", self.engine.model_id):
            raise _Refusal(
                error(
                    404,
                    f"the model {name[:120]!r} is not loaded here; {self.engine.model_id!r} is",
                    param="model",
                    code="model_not_found",
                )
            )

    async def health(self, request: Request) -> Response:
        """200 while answers can be had, 503 otherwise; no key needed, nothing told but the state."""
        if self.engine.healthy:
            return JSONResponse({"status": "ok"})
        status = "stuck" if self.engine.ready else "unavailable"
        return JSONResponse({"status": status}, status_code=503, headers={"Retry-After": "5"})

    async def metrics(self, request: Request) -> Response:
        """Counters and gauges for Prometheus."""
        self._authorise(request)
        from flashmoe.serve.metrics import CONTENT_TYPE, render

        return Response(render(self.engine), media_type=CONTENT_TYPE)

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions, streamed or whole."""
        return await self._complete(request, chat=True)

    async def completions(self, request: Request) -> Response:
        """OpenAI's text completions, streamed or whole."""
        return await self._complete(request, chat=False)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        self._authorise(request)
        body = await self._body(request)
        request_id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        try:
            parsed = parse_completion(body, request_id, chat=chat, n_ctx=self.engine.info.n_ctx)
        except BadRequestError as e:
            return error(400, str(e), param=e.param)
        self._check_model(parsed.model)
        shape = Shape(chat=chat, id=request_id, created=int(time.time()), model=self.engine.model_id)
        try:
            ticket = await self.engine.admit(parsed.generate)
        except BusyError as e:
            return error(429, str(e), kind="rate_limit_error", headers={"Retry-After": "5"})
        except EngineError as e:
            return _engine_error(e)
        events = self.engine.generate(parsed.generate, ticket)
        if parsed.stream:
            return await self._stream(parsed, shape, events)
        return await self._whole(request, parsed.generate, shape, events)

    async def _whole(
        self, request: Request, generate: GenerateRequest, shape: Shape, events: AsyncIterator[Event]
    ) -> Response:
        """Collects the answer; gives up (and frees the slot) when the client has gone."""
        said = Said()
        finished: Finished | None = None

        async def collect() -> None:
            nonlocal finished
            async for event in events:
                if isinstance(event, Delta):
                    said.hear(event)
                elif isinstance(event, Finished):
                    finished = event

        async def gone() -> None:
            while not await request.is_disconnected():  # noqa: ASYNC110 - ASGI tells it only when asked
                await asyncio.sleep(0.5)

        answer, watch = asyncio.create_task(collect()), asyncio.create_task(gone())
        try:
            await asyncio.wait({answer, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)
            await answer
        except EngineError as e:
            return _engine_error(e)
        finally:
            for task in (answer, watch):
                task.cancel()
            await asyncio.gather(answer, watch, return_exceptions=True)
        assert finished is not None
        return JSONResponse(shape.whole(said, finished))

    async def _stream(self, parsed: CompletionRequest, shape: Shape, events: AsyncIterator[Event]) -> Response:
        """Server-sent events. The first event is waited for, so that a refused request gets a proper status."""
        first = asyncio.create_task(_next(events))
        try:
            done, _ = await asyncio.wait({first}, timeout=0.25)
            if done and (failure := first.exception()) is not None:
                raise failure
        except EngineError as e:
            return _engine_error(e)
        body = _sse(parsed, shape, events, first)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)


async def _sse(
    parsed: CompletionRequest, shape: Shape, events: AsyncIterator[Event], first: asyncio.Task[Event | None]
) -> AsyncIterator[bytes]:
    pending: asyncio.Task[Event | None] = first
    called = False
    try:
        if shape.chat:
            yield _line(shape.opening())
        while True:
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT_S)
            if not done:
                yield b": still working\n\n"
                continue
            event = pending.result()
            if event is None:
                break
            pending = asyncio.create_task(_next(events))
            if isinstance(event, Delta):
                called = called or (event.kind == "call_end" and event.complete)
                if (chunk := shape.delta(event)) is not None:
                    yield _line(chunk)
            elif isinstance(event, Finished):
                yield _line(shape.closing(finish_reason(event, called=called)))
                if parsed.include_usage:
                    yield _line(shape.usage_only(usage_of(event)))
        yield b"data: [DONE]\n\n"
    except EngineError as e:
        yield _line({"error": {"message": e.message, "type": "server_error", "param": None, "code": e.code}})
    finally:
        # a client that went away cancels this generator: the engine must hear of it
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        aclose = getattr(events, "aclose", None)
        if aclose is not None:
            with contextlib.suppress(Exception):
                await aclose()


def _line(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _engine_error(e: EngineError) -> JSONResponse:
    status = _STATUS.get(e.code, 500)
    kind = "invalid_request_error" if status == 400 else "server_error"
    headers = {"Retry-After": "5"} if status == 503 else None
    return error(status, e.message, kind=kind, code=e.code, headers=headers)


def _guard(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Refusals become their response; anything unforeseen a plain 500, told to the log and not to the client."""

    @functools.wraps(handler)
    async def run(request: Request) -> Response:
        try:
            response: Response = await handler(request)
        except _Refusal as r:
            return r.response
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            return error(500, "the server failed on this request; its log says why", kind="server_error")
        return response

    return run


def create_app(engine: Engine, *, api_key: str | None, allowed_hosts: list[str]) -> Starlette:
    """The ASGI app. `allowed_hosts` guards a keyless loopback server against DNS rebinding; ``["*"]`` takes any."""
    server = Server(engine, api_key)
    routes = [
        Route("/v1/models", _guard(server.models), methods=["GET"]),
        Route("/v1/models/{name:path}", _guard(server.model), methods=["GET"]),
        Route("/v1/chat/completions", _guard(server.chat), methods=["POST"]),
        Route("/v1/completions", _guard(server.completions), methods=["POST"]),
        Route("/health", _guard(server.health), methods=["GET"]),
        Route("/metrics", _guard(server.metrics), methods=["GET"]),
    ]

    async def not_found(request: Request, exc: Exception) -> Response:
        return error(404, f"there is nothing at {request.url.path[:200]}")

    async def not_allowed(request: Request, exc: Exception) -> Response:
        return error(405, f"{request.method} is not for {request.url.path[:200]}")

    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts)],
        exception_handlers={404: not_found, 405: not_allowed},
    )
