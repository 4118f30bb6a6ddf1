"""The connection to a server: its client, its key, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

import httpx2
import msgspec

from backends.interface import EngineError
from flashmoe.remote.address import host_of, is_loopback
from flashmoe.remote.keys import advice_for, key_variable

CONNECT_S = 10.0


def make_client(base: str) -> httpx2.Client:
    """A client for one server: its key from the environment, no redirects (a key must not travel on), no proxy on the
    way to this machine itself, a connection for each request (one that was kept may be gone by the next question)."""
    headers = {"Accept": "application/json", "User-Agent": "flashmoe-tui"}
    if (variable := key_variable(base)) is not None:
        headers["Authorization"] = f"Bearer {os.environ[variable]}"
    url = base.rstrip("/")
    if not urlsplit(url).path:
        url += "/v1"
    timeout = httpx2.Timeout(CONNECT_S, read=None)
    limits = httpx2.Limits(max_keepalive_connections=0)
    host = urlsplit(url).hostname or ""
    direct = {f"all://{f'[{host}]' if ':' in host else host}": None} if is_loopback(host) else None
    return httpx2.Client(
        base_url=url, headers=headers, timeout=timeout, limits=limits, follow_redirects=False, mounts=direct
    )


def network_error(e: httpx2.HTTPError, base: str, *, begun: bool = False) -> EngineError:
    """One sentence for a connection that failed; `begun`: in the middle of an answer."""
    host = host_of(base)
    if isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout):
        return EngineError("network", f"No server answers at {host}", "is it running, and is the address correct?")
    if begun:
        return EngineError("network", f"The connection to {host} broke in mid-answer", "what came so far is kept.")
    if isinstance(e, httpx2.TimeoutException):
        return EngineError("network", f"{host} took the connection but sent nothing in time", "try again.")
    if isinstance(e, httpx2.RemoteProtocolError | httpx2.ReadError):
        return EngineError("network", f"{host} closed the connection without an answer", "try again.")
    return EngineError("network", f"The connection to {host} failed ({type(e).__name__})", "try again.")


def status_error(status: int, body: bytes, base: str, headers: Mapping[str, str]) -> EngineError:
    """One sentence for an HTTP error, with the server's own words where it has some."""
    host = host_of(base)
    said = _message(body)
    if 300 <= status < 400:
        return EngineError("network", f"{host} sends on to {_elsewhere(headers, base)}", "use that address instead.")
    if status in (401, 403):
        if (variable := key_variable(base)) is not None:
            return EngineError("unauthorized", f"{host} doesn't accept the key in {variable}{said}.")
        return EngineError("unauthorized", f"{host} wants a key{said}", advice_for(base))
    if status == 404:
        return EngineError("not_found", f"{host} has no such route or model{said}", "the address usually ends in /v1.")
    if status == 429 or status >= 500:
        what = "has too many requests" if status == 429 else "can't answer now"
        return EngineError("network", f"{host} {what} (status {status}){said}", f"try again {_when(headers)}.")
    code = "prompt_too_long" if "context" in said.lower() else "bad_request"
    return EngineError(code, f"{host} refused the request (status {status}){said}.")


def _when(headers: Mapping[str, str]) -> str:
    said = headers.get("Retry-After", "")
    seconds = int(said[:6]) if said.isascii() and said.isdigit() else 0
    if not 0 < seconds < 86_400:
        return "in a moment"
    return f"in {seconds} s" if seconds < 120 else f"in {-(-seconds // 60)} min"


def _elsewhere(headers: Mapping[str, str], base: str) -> str:
    """Where a redirect leads, as an address to type: without what a user name, a query or a fragment may hold."""
    try:
        there = urlsplit(urljoin(base, headers.get("Location", "")))
        port = f":{there.port}" if there.port else ""
    except ValueError:
        return "an address that can't be read"
    path = there.path.removesuffix("/models").removesuffix("/chat/completions").removesuffix("/completions")
    return f"{there.scheme}://{there.hostname or '?'}{port}{path}"[:200]


def _message(body: bytes) -> str:
    """``: what the server says``, without a full stop; empty where it says nothing."""
    try:
        data = msgspec.json.decode(body[:65536])
        text = data["error"]["message"] if isinstance(data["error"], dict) else data["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return ""
    return f": {str(text)[:300].strip().rstrip('.')}" if text else ""
