"""Whether what a server sends is the part of the file that was asked for; and if not, what it is instead."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from flashmoe.hub.errors import HubError
from flashmoe.hub.explain import host_of, of_status, proxy_login, web_page
from flashmoe.hub.names import show

if TYPE_CHECKING:
    import httpx2

GONE = frozenset({400, 401, 403, 404, 410})
"""Statuses with which CDNs refuse a signed address that expired."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_MESSAGES = ("application/json", "application/xml", "text/xml")

Kind = Literal["part", "whole"]


def judge(response: httpx2.Response, *, name: str, size: int, start: int) -> Kind:
    """``part``: the body begins at byte `start`; ``whole``: the server sends all of the file from its start.

    Raises `HubError`: ``expired`` for an address that is refused, ``rate_limited`` and ``server`` for what may pass,
    ``bad_answer`` for what isn't the file.
    """
    status, headers = response.status_code, response.headers
    host, shown = host_of(str(response.url)), show(name.rsplit("/", 1)[-1], 80)
    if status == 407:
        raise proxy_login(host)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if status in GONE and kind != "text/html":
        raise HubError("expired", f"The download address of {shown} was refused ({status})")
    if status in (408, 429) or status >= 500:
        code = "rate_limited" if status == 429 else "server"
        error = of_status(503 if status == 408 else status, headers, shown, host)
        raise HubError(code, f"The download server answered {status}", error.advice, retry_after=error.retry_after)
    if kind in ("text/html", "application/xhtml+xml"):
        raise web_page(host, shown)
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HubError(
            "bad_answer", f"{host} sends {shown} compressed ({show(encoding, 20)}) though it was asked not to",
            "a proxy in between may do that: add the host to NO_PROXY, or use another network",
        )  # fmt: skip
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
        if match and match[3] not in ("*", str(size)):
            raise _other_length(host, shown, int(match[3]), size)
        if match and int(match[1]) == start:
            return "part"
        raise HubError("bad_answer", f"{host} sent another part of {shown} than the one asked for", "try again later")
    if status == 200:
        length = headers.get("content-length", "")
        if kind in _MESSAGES and length != str(size):
            raise HubError("bad_answer", f"{host} answered with a message instead of {shown}", "try again later")
        if length.isdigit() and int(length) != size:
            raise _other_length(host, shown, int(length), size)
        return "whole"
    raise HubError("bad_answer", f"{host} answered {status} instead of sending {shown}", "try again later")


def _other_length(host: str, name: str, found: int, size: int) -> HubError:
    return HubError(
        "bad_answer", f"{host} has {found:,} bytes as {name}, which has {size:,} on the hub",
        "a mirror that isn't up to date does that: try again later, or without HF_ENDPOINT",
    )  # fmt: skip
