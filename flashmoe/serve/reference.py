"""What the endpoints of `serve` take, for docs/reference.md: read from the routes and from what the parser knows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from starlette.routing import Route

from flashmoe.openai import requests


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
    yield f"Fields that are read: {', '.join(f'`{n}`' for n in sorted(requests._READ))}."
    yield ""
    yield f"Fields that are taken and have no effect: {', '.join(f'`{n}`' for n in sorted(requests._HARMLESS))}."
