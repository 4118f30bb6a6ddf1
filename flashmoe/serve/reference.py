"""What the endpoints of `serve` take, for docs/reference.md: read from the routes and from what the parser knows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec.inspect
from starlette.routing import Route

from flashmoe.anthropic.requests import CountRequest, MessagesRequest
from flashmoe.openai import requests
from flashmoe.openai.response_requests import ResponseRequest
from flashmoe.openai.tokens import DetokenizeRequest, TokenizeRequest

BODIES: dict[str, type[Any]] = {
    "/v1/chat/completions": requests.ChatRequest,
    "/v1/completions": requests.TextRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""Routes that take a body, and what it may hold."""


def describe() -> Iterator[str]:
    """Markdown lines: a table of routes, then the fields of a request."""
    from flashmoe.serve.app import create_app

    engine: Any = None  # a route is described, never called
    app = create_app(engine, api_key=None, allowed_hosts=["*"])
    yield "| route | methods | answers |"
    yield "|---|---|---|"
    for route in app.routes:
        if isinstance(route, Route):
            methods = ", ".join(sorted((route.methods or set()) - {"HEAD"}))
            yield f"| `{route.path}` | {methods} | {inspect.cleandoc(route.endpoint.__doc__ or '').splitlines()[0]} |"
    yield ""
    for title, kind in BODIES.items():
        known = msgspec.inspect.type_info(kind)
        assert isinstance(known, msgspec.inspect.StructType)
        names = [field.encode_name for field in known.fields if field.encode_name not in requests.HARMLESS]
        yield f"`{title}` reads {', '.join(f'`{n}`' for n in sorted(names))}."
        yield ""
    yield f"Taken without effect: {', '.join(f'`{n}`' for n in sorted(requests.HARMLESS))}."
