"""The HTTP endpoints: routes over one engine, in the shapes of OpenAI's and Anthropic's APIs.

Every request becomes one or several `GenerateRequest`s with ids of their own; the engine decodes them together. A
request that is refused is told so before the status line is sent, in its API's own shape. A client that goes away has
its answers cancelled within a layer. Nothing here touches a model: `Engine` (serve/engine.py) does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from backends.engine.tokens import detokenize, tokenize
from backends.interface import Delta, EngineError, Finished, PrefillProgress
from flashmoe.anthropic.requests import parse_count
from flashmoe.anthropic.responses import engine_message
from flashmoe.openai.fields import BadRequestError, read
from flashmoe.openai.responses import Frame
from flashmoe.openai.tokens import DetokenizeRequest, TokenizeRequest, tokenize_request
from flashmoe.serve.answers import Answers
from flashmoe.serve.apis import Api, Chat, Job, Messages, Responses, Text
from flashmoe.serve.engine import BusyError, Engine
from flashmoe.serve.guard import AllowedHosts, Guard, Refusal, anthropic_error, errors_for

HEARTBEAT_S = 15.0
"""A comment line goes out this often where nothing else does, so that proxies keep the connection."""
PROGRESS_S = 0.9
"""And this often while a prompt is computed: how far it is."""

log = logging.getLogger(__name__)


class Server:
    """The routes and what they share: the engine and, beyond loopback, a key."""

    def __init__(self, engine: Engine, api_key: str | None, *, strict_model: bool = False) -> None:
        """`strict_model`: a request that names another model is refused; else the loaded one answers."""
        self.engine = engine
        self._guard = Guard(api_key)
        self._strict = strict_model
        self.started = int(time.time())
        self._chat, self._text, self._messages, self._responses = Chat(), Text(), Messages(), Responses()

    # ---- the model ----------------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The loaded model, as a list of one."""
        self._guard.authorise(request)
        name = self.engine.model_id
        pages = {"has_more": False, "first_id": name, "last_id": name}  # what Anthropic's list has
        return JSONResponse({"object": "list", "data": [self._model_object()], **pages})

    async def model(self, request: Request) -> Response:
        """One model's name, context and architecture; whatever name is asked for, unless --strict-model."""
        self._guard.authorise(request)
        self._check_model(request.path_params["name"], request)
        return JSONResponse(self._model_object())

    def _model_object(self) -> dict[str, Any]:
        info, n_ctx = self.engine.info, self.engine.request_ctx
        return {
            "id": self.engine.model_id, "object": "model", "created": self.started, "owned_by": "local",
            "type": "model", "display_name": self.engine.model_id,
            "created_at": datetime.fromtimestamp(self.started, UTC).isoformat().replace("+00:00", "Z"),
            "max_model_len": n_ctx, "context_length": n_ctx,
            "meta": {"architecture": info.architecture, "quant": info.quant, "n_ctx": n_ctx,
                     "n_ctx_train": info.n_ctx_train, "n_vocab": info.n_vocab, "size": info.file_bytes,
                     "lossy": info.lossy},
        }  # fmt: skip

    def _check_model(self, name: str | None, request: Request) -> None:
        if self._strict and name not in (None, "", "default", self.engine.model_id):
            message = f"the model {name[:120]!r} is not loaded here; {self.engine.model_id!r} is"
            raise Refusal(errors_for(request.url.path)(404, message, param="model", code="model_not_found"))

    async def health(self, request: Request) -> Response:
        """200 while answers can be had, 503 otherwise; no key needed, it tells nothing but the state."""
        if self.engine.healthy:
            return JSONResponse({"status": "ok"})
        status = "stuck" if self.engine.ready else "unavailable"
        return JSONResponse({"status": status}, status_code=503, headers={"Retry-After": "5"})

    async def metrics(self, request: Request) -> Response:
        """Counters and gauges for Prometheus."""
        self._guard.authorise(request)
        from flashmoe.serve.metrics import CONTENT_TYPE, render

        return Response(render(self.engine), media_type=CONTENT_TYPE)

    # ---- answers ------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions with tools, streamed or whole."""
        return await self._answer(request, self._chat)

    async def completions(self, request: Request) -> Response:
        """OpenAI's text completions, streamed or whole."""
        return await self._answer(request, self._text)

    async def messages(self, request: Request) -> Response:
        """Anthropic's messages with tools, streamed or whole."""
        return await self._answer(request, self._messages)

    async def responses(self, request: Request) -> Response:
        """OpenAI's responses with functions, streamed or whole."""
        return await self._answer(request, self._responses)

    async def _answer(self, request: Request, api: Api) -> Response:
        self._guard.authorise(request)
        body = await self._guard.body(request)
        try:
            job = await api.read(body, self.engine)
            self._check_model(job.model, request)
            answers = Answers(self.engine, job.generate)
            await answers.begin()
        except BadRequestError as e:
            return api.bad_request(e)
        except BusyError as e:
            return api.busy(str(e), self.engine.queue_s)
        except EngineError as e:
            return api.engine_error(e)
        if job.stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return _Events(_sse(job, answers), answers, headers)
        return await _whole(request, job, answers, api)

    # ---- tokens -------------------------------------------------------------------------------------------------

    async def count_tokens(self, request: Request) -> Response:
        """How many tokens a request to /v1/messages has."""
        self._guard.authorise(request)
        body = await self._guard.body(request)
        try:
            count = await self.engine.client.count_tokens(parse_count(body, "count"))
        except BadRequestError as e:
            return anthropic_error(400, e.message)
        except EngineError as e:
            if e.code != "prompt_too_long":
                return self._messages.engine_error(e)
            return anthropic_error(400, engine_message(e))
        return JSONResponse({"input_tokens": count})

    async def tokenize(self, request: Request) -> Response:
        """The token ids of a text or of messages."""
        self._guard.authorise(request)
        body = await self._guard.body(request)
        try:
            given = read(body, TokenizeRequest)
            tokens = await tokenize(self.engine.client, tokenize_request(given), special=given.adds_special)
        except BadRequestError as e:
            return self._text.bad_request(e)
        except EngineError as e:
            return self._text.engine_error(e)
        told = {"tokens": tokens, "count": len(tokens), "max_model_len": self.engine.request_ctx}
        return JSONResponse(told)

    async def tokenizer_info(self, request: Request) -> Response:
        """The tokens that begin and end a prompt, as lm-evaluation-harness asks for them."""
        self._guard.authorise(request)
        info = self.engine.info
        return JSONResponse({"bos_token": info.bos_token or None, "eos_token": info.eos_token or None})

    async def detokenize(self, request: Request) -> Response:
        """The text of token ids."""
        self._guard.authorise(request)
        body = await self._guard.body(request)
        try:
            text = await detokenize(self.engine.client, tuple(read(body, DetokenizeRequest).tokens))
        except BadRequestError as e:
            return self._text.bad_request(e)
        except EngineError as e:
            return self._text.engine_error(e)
        return JSONResponse({"content": text, "prompt": text})


async def _whole(request: Request, job: Job, answers: Answers, api: Api) -> Response:
    """Collects the answers; gives up (and frees their places) when the client has gone."""

    async def collect() -> None:
        async for index, event in answers.events():
            if isinstance(event, Finished):
                job.shape.said[index].finished = event
            else:
                job.shape.said[index].hear(event)

    async def gone() -> None:
        while not await request.is_disconnected():  # noqa: ASYNC110 - ASGI tells it only when asked
            await asyncio.sleep(0.5)

    collected, watch = asyncio.create_task(collect()), asyncio.create_task(gone())
    try:
        await asyncio.wait({collected, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not collected.done():
            return Response(status_code=499)
        await collected
    except EngineError as e:
        return api.engine_error(e)
    finally:
        for task in (collected, watch):
            task.cancel()
        await asyncio.gather(collected, watch, return_exceptions=True)
        answers.stop()
    job.done()
    return Response(msgspec.json.encode(job.shape.whole()), media_type="application/json")


async def _sse(job: Job, answers: Answers) -> AsyncIterator[bytes]:
    """The answers as server-sent events."""
    shape = job.shape
    events = answers.events()
    pending: asyncio.Future[tuple[int, Delta | Finished] | None] | None = None
    told_at = time.monotonic()
    try:
        for frame in shape.opening(answers.prompt_tokens):
            yield _line(frame)
        while True:
            pending = pending or asyncio.create_task(_next(events))
            done, _ = await asyncio.wait({pending}, timeout=PROGRESS_S)
            if not done:
                prompts = answers.prompts()
                if prompts or time.monotonic() - told_at >= HEARTBEAT_S:
                    told_at = time.monotonic()
                    yield _comment(prompts)
                continue
            told_at = time.monotonic()
            got, pending = pending.result(), None
            if got is None:
                break
            index, event = got
            told = shape.finished(index, event) if isinstance(event, Finished) else shape.delta(index, event)
            for frame in told:
                yield _line(frame)
        job.done()
        if shape.end:
            yield shape.end
    except EngineError as e:
        yield _line(shape.failed(e))
    finally:
        if pending is not None:
            pending.cancel()


def _comment(prompts: Sequence[PrefillProgress]) -> bytes:
    """A line that no client takes for an event: how far the prompts are."""
    if not prompts:
        return b": still working\n\n"
    done, total = sum(p.done for p in prompts), sum(p.total for p in prompts)
    left = max((p.eta_s for p in prompts if p.eta_s is not None), default=None)
    about = "" if left is None else f", about {left:.0f} s left"
    return f": prompt: {done} of {total} tokens{about}\n\n".encode()


class _Events(StreamingResponse):
    """A stream of events. However it ends, also before its first one, the engine hears of it."""

    def __init__(self, content: AsyncIterator[bytes], answers: Answers, headers: dict[str, str]) -> None:
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.stop()  # nothing can be awaited where the client went away


async def _next(events: AsyncIterator[tuple[int, Delta | Finished]]) -> tuple[int, Delta | Finished] | None:
    return await anext(events, None)


def _line(frame: Frame) -> bytes:
    name, data = frame
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + msgspec.json.encode(data) + b"\n\n"


def _guarded(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Refusals become their response; anything unforeseen a plain 500, told to the log and not to the client."""

    async def run(request: Request) -> Response:
        try:
            response: Response = await handler(request)
        except Refusal as r:
            return r.response
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path)
            return errors_for(request.url.path)(500, "the server failed on this request; its log says why")
        return response

    run.__doc__ = handler.__doc__  # the reference reads it
    return run


def create_app(
    engine: Engine,
    *,
    api_key: str | None,
    allowed_hosts: Sequence[str],
    cors: Sequence[str] = (),
    strict_model: bool = False,
) -> Starlette:
    """The ASGI app. `allowed_hosts` guards a keyless loopback server against DNS rebinding; ``["*"]`` takes any.
    `cors`: origins whose pages may ask."""
    server = Server(engine, api_key, strict_model=strict_model)
    routes = [
        Route("/v1/models", _guarded(server.models), methods=["GET"]),
        Route("/v1/models/", _guarded(server.models), methods=["GET"]),
        Route("/v1/models/{name:path}", _guarded(server.model), methods=["GET"]),
        Route("/v1/chat/completions", _guarded(server.chat), methods=["POST"]),
        Route("/v1/completions", _guarded(server.completions), methods=["POST"]),
        Route("/v1/responses", _guarded(server.responses), methods=["POST"]),
        Route("/v1/messages", _guarded(server.messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", _guarded(server.count_tokens), methods=["POST"]),
        Route("/tokenize", _guarded(server.tokenize), methods=["POST"]),
        Route("/tokenizer_info", _guarded(server.tokenizer_info), methods=["GET"]),
        Route("/detokenize", _guarded(server.detokenize), methods=["POST"]),
        Route("/health", _guarded(server.health), methods=["GET"]),
        Route("/metrics", _guarded(server.metrics), methods=["GET"]),
    ]

    async def not_found(request: Request, exc: Exception) -> Response:
        return errors_for(request.url.path)(404, f"there is nothing at {request.url.path[:200]}")

    async def not_allowed(request: Request, exc: Exception) -> Response:
        message = f"{request.method} is not allowed for {request.url.path[:200]}"
        return errors_for(request.url.path)(405, message, headers=getattr(exc, "headers", None))

    middleware = [Middleware(AllowedHosts, hosts=list(allowed_hosts))]
    if cors:
        names = ["GET", "POST", "OPTIONS"]
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=names, allow_headers=["*"])
        )
    handlers: dict[Any, Any] = {404: not_found, 405: not_allowed}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
