"""The APIs that make answers: how each reads a request, shapes its answers and tells its errors."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from starlette.responses import JSONResponse

from backends.engine.tokens import detokenize
from backends.interface import ChatMessage, Delta, EngineError, Finished, GenerateRequest
from flashmoe.anthropic.requests import parse_messages
from flashmoe.anthropic.responses import MessageShape, engine_message
from flashmoe.openai.fields import BadRequestError
from flashmoe.openai.requests import parse_chat, parse_text
from flashmoe.openai.response_events import ResponseShape
from flashmoe.openai.response_requests import parse_response
from flashmoe.openai.responses import Frame, Shape, engine_error
from flashmoe.openai.said import Said
from flashmoe.serve.engine import Engine
from flashmoe.serve.guard import anthropic_error, openai_error

STATUS = {
    "bad_request": 400, "prompt_too_long": 400, "bad_template": 400, "unsupported": 400, "context_too_large": 400,
    "engine_died": 503, "no_memory": 503, "not_found": 503,
}  # fmt: skip
MAX_KEPT = 256
MAX_KEPT_CHARACTERS = 32 << 20
"""Of the conversations that `previous_response_id` may name."""


class Shaped(Protocol):
    """Builds the objects of one response, whole or as the events of a stream."""

    said: list[Said]
    end: bytes

    def whole(self) -> dict[str, Any]: ...
    def opening(self, prompt_tokens: Sequence[int]) -> Iterator[Frame]: ...
    def delta(self, index: int, delta: Delta) -> Iterator[Frame]: ...
    def finished(self, index: int, event: Finished) -> Iterator[Frame]: ...
    def failed(self, e: EngineError) -> Frame: ...


class Job:
    """One request, read: what is to be generated, and how it goes back."""

    def __init__(
        self, generate: tuple[GenerateRequest, ...], shape: Shaped, *, stream: bool, model: str | None
    ) -> None:
        self.generate = generate
        self.shape = shape
        self.stream = stream
        self.model = model

    def done(self) -> None:
        """All answers have finished."""


class Api(Protocol):
    """One of the APIs."""

    async def read(self, body: Any, engine: Engine) -> Job:
        """Raises `BadRequestError` and `EngineError`."""
        ...

    def bad_request(self, e: BadRequestError) -> JSONResponse: ...
    def engine_error(self, e: EngineError) -> JSONResponse: ...
    def busy(self, message: str, seconds: int) -> JSONResponse: ...


class _OpenAI:
    def bad_request(self, e: BadRequestError) -> JSONResponse:
        return openai_error(400, e.message, param=e.param, code=e.api_code)

    def engine_error(self, e: EngineError) -> JSONResponse:
        status = STATUS.get(e.code, 500)
        headers = {"Retry-After": "5"} if status == 503 else None
        return JSONResponse(engine_error(e), status_code=status, headers=headers)

    def busy(self, message: str, seconds: int) -> JSONResponse:
        return openai_error(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(seconds)})


class Chat(_OpenAI):
    """``/v1/chat/completions``."""

    async def read(self, body: Any, engine: Engine) -> Job:
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        parsed = parse_chat(body, request_id)
        shape = Shape(
            chat=True,
            id=request_id,
            created=int(time.time()),
            model=engine.model_id,
            n=len(parsed.generate),
            include_usage=parsed.include_usage,
            top_logprobs=parsed.top_logprobs,
        )
        return Job(parsed.generate, shape, stream=parsed.stream, model=parsed.model)


class Text(_OpenAI):
    """``/v1/completions``."""

    async def read(self, body: Any, engine: Engine) -> Job:
        request_id = f"cmpl-{uuid.uuid4().hex}"
        parsed = parse_text(body, request_id)
        echo: list[str] = []
        if parsed.echo:
            for generate in parsed.generate:
                text = generate.prompt
                echo.append(await detokenize(engine.client, generate.tokens or ()) if text is None else text)
        shape = Shape(
            chat=False,
            id=request_id,
            created=int(time.time()),
            model=engine.model_id,
            n=len(parsed.generate),
            include_usage=parsed.include_usage,
            top_logprobs=parsed.top_logprobs,
            echo=tuple(echo),
            nothing=parsed.nothing,
        )
        return Job(parsed.generate, shape, stream=parsed.stream, model=parsed.model)


class Messages:
    """``/v1/messages``."""

    async def read(self, body: Any, engine: Engine) -> Job:
        request_id = f"msg_{uuid.uuid4().hex}"
        asked = parse_messages(body, request_id)
        shape = MessageShape(id=request_id, model=asked.model or engine.model_id)
        return Job((asked.generate,), shape, stream=asked.stream, model=asked.model)

    def bad_request(self, e: BadRequestError) -> JSONResponse:
        return anthropic_error(400, e.message)

    def engine_error(self, e: EngineError) -> JSONResponse:
        status = STATUS.get(e.code, 500)
        headers = {"Retry-After": "5"} if status == 503 else None
        return anthropic_error(status, engine_message(e), headers=headers)

    def busy(self, message: str, seconds: int) -> JSONResponse:
        return anthropic_error(429, message, headers={"Retry-After": str(seconds)})


class _Kept(Job):
    """A response whose conversation is kept once it is done."""

    def __init__(
        self, api: Responses, shape: ResponseShape, generate: GenerateRequest, *, keep: bool, **more: Any
    ) -> None:
        super().__init__((generate,), shape, **more)
        self._api = api
        self._response = shape
        self._keep = keep

    def done(self) -> None:
        if self._keep:
            self._api.keep(self._response)


class Responses(_OpenAI):
    """``/v1/responses``."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[ChatMessage, ...]] = OrderedDict()

    async def read(self, body: Any, engine: Engine) -> Job:
        request_id = f"resp_{uuid.uuid4().hex}"
        asked = parse_response(body, request_id, self._kept)
        shape = ResponseShape(asked, id=request_id, model=engine.model_id)
        given = asked.given
        return _Kept(
            self, shape, asked.generate, keep=given.store is not False, stream=bool(given.stream), model=given.model
        )

    def keep(self, shape: ResponseShape) -> None:
        """Keeps a conversation for `previous_response_id`, in memory; the oldest go."""
        self._kept[shape.id] = shape.messages()

        def size(messages: tuple[ChatMessage, ...]) -> int:
            return sum(len(m.content) + len(m.thinking) for m in messages)

        total = sum(size(m) for m in self._kept.values())
        while len(self._kept) > MAX_KEPT or (total > MAX_KEPT_CHARACTERS and self._kept):
            _, gone = self._kept.popitem(last=False)
            total -= size(gone)
