"""What every route checks before it does anything: the host that was asked for, the key, and a body that is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flashmoe.anthropic.responses import error_body

MAX_BODY = 16 * 1024 * 1024
MAX_BODIES = 96 * 1024 * 1024
"""Bytes of all bodies that are being read or kept together."""
BODY_S = 60.0
"""A body that takes longer to arrive is given up: a client that dribbles must not keep a connection for ever."""

ErrorMaker = Callable[..., JSONResponse]


def openai_error(
    status: int,
    message: str,
    *,
    kind: str | None = None,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error in OpenAI's shape."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kind or kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)


def anthropic_error(
    status: int,
    message: str,
    *,
    kind: str | None = None,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """An error in Anthropic's shape, which has no place for a code; a field stands in the message already."""
    return JSONResponse(error_body(status, message), status_code=status, headers=headers)


def errors_for(path: str) -> ErrorMaker:
    """How the API at a path tells errors."""
    return anthropic_error if path.startswith("/v1/messages") else openai_error


class Refusal(Exception):
    """Ends a route early with this response."""

    def __init__(self, response: Response) -> None:
        self.response = response


def keys_as_sent(key: str) -> tuple[bytes, ...]:
    """The bytes that a client may send for a key: most write it as UTF-8, some as Latin-1."""
    forms = {key.encode()}
    with contextlib.suppress(UnicodeEncodeError):
        forms.add(key.encode("latin-1"))
    return tuple(forms)


class Guard:
    """The key, and the memory that bodies take."""

    def __init__(self, api_key: str | None) -> None:
        self._keys = keys_as_sent(api_key) if api_key else ()
        self._held = 0

    def authorise(self, request: Request) -> None:
        """Raises `Refusal` for a request without the key, given as OpenAI's or as Anthropic's clients do."""
        if not self._keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        sent = [given.strip()] if scheme.lower() == "bearer" else []
        sent += [value.strip() for value in (request.headers.get("x-api-key"),) if value]
        for value in sent:
            if any(hmac.compare_digest(value.encode("latin-1", "replace"), key) for key in self._keys):
                return
        message = "this server needs the API key it was started with, as 'Authorization: Bearer …' or 'x-api-key: …'"
        headers = {"WWW-Authenticate": "Bearer"}
        raise Refusal(errors_for(request.url.path)(401, message, code="invalid_api_key", headers=headers))

    async def body(self, request: Request) -> Any:
        """The body, parsed. Raises `Refusal`."""
        error = errors_for(request.url.path)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # also keeps web pages from posting here without asking first
            raise Refusal(error(415, "send the request as Content-Type: application/json"))
        too_large = Refusal(error(413, f"the request body is larger than {MAX_BODY // 2**20} MiB"))
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY:
            raise too_large
        raw = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    self._held += len(chunk)
                    raw += chunk
                    if len(raw) > MAX_BODY:
                        raise too_large
                    if self._held > MAX_BODIES:
                        message = "too many large requests in parallel; try again in a moment"
                        raise Refusal(error(429, message, headers={"Retry-After": "2"}))
            if len(raw) > 1 << 20:
                return await asyncio.to_thread(msgspec.json.decode, bytes(raw))
            return msgspec.json.decode(bytes(raw))
        except TimeoutError:
            message = f"the request body did not arrive within {BODY_S:g} seconds"
            raise Refusal(error(408, message)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            raise Refusal(error(400, f"the request body is not valid JSON: {e}")) from None
        finally:
            self._held -= len(raw)


class AllowedHosts:
    """ASGI middleware: a page that got hold of another name for this address must not reach a server without a key."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """`hosts`: names without ports; ``*`` allows any."""
        self._app = app
        self._hosts = {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self._hosts:
            given = next((v for k, v in scope["headers"] if k == b"host"), b"").decode("latin-1")
            host = given.rpartition("]")[0].strip("[") if given.startswith("[") else given.partition(":")[0]
            if host.lower() not in self._hosts:
                shown = "".join(c for c in host if c.isprintable())[:80]
                message = (
                    f"this server doesn't answer to the name {shown!r}, which keeps web pages out; start it with "
                    f"--allow-host {shown} if you mean it"
                )
                await errors_for(scope["path"])(400, message, code="host_not_allowed")(scope, receive, send)
                return
        await self._app(scope, receive, send)
