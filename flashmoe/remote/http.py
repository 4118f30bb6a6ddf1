"""The connection to a server: its client, its key, and what its errors mean."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import httpx2
import msgspec

from backends.interface import EngineError

KEY_VARIABLES = ("FLASHMOE_REMOTE_KEY", "OPENAI_API_KEY")


CONNECT_S = 10.0


def make_client(base: str) -> httpx2.Client:
    """A client for one server: the key from the environment, no redirects (a key must not travel on)."""
    headers = {"Accept": "application/json", "User-Agent": "flashmoe-tui"}
    for variable in KEY_VARIABLES:
        if key := os.environ.get(variable):
            headers["Authorization"] = f"Bearer {key}"
            break
    url = base.rstrip("/")
    if not urlsplit(url).path:
        url += "/v1"
    timeout = httpx2.Timeout(CONNECT_S, read=None)
    return httpx2.Client(base_url=url, headers=headers, timeout=timeout, follow_redirects=False)


def network_error(e: httpx2.HTTPError, base: str) -> EngineError:
    """One sentence for a connection that failed."""
    host = urlsplit(base).netloc
    if isinstance(e, httpx2.ConnectError | httpx2.ConnectTimeout):
        return EngineError("network", f"no server answers at {host}: is it running, and is the address correct?")
    return EngineError("network", f"the connection to {host} failed ({type(e).__name__})", "try again")


def status_error(status: int, body: bytes, base: str) -> EngineError:
    """One sentence for an HTTP error, with the server's own words where it has some."""
    host = urlsplit(base).netloc
    said = _message(body)
    if status in (401, 403):
        return EngineError("unauthorized", f"{host} wants a key: set {KEY_VARIABLES[0]}")
    if status == 404:
        return EngineError("not_found", f"{host} has no such route or model{said}", "the address usually ends in /v1")
    if status == 429 or status >= 500:
        return EngineError("network", f"{host} can't answer now (status {status}){said}", "try again in a moment")
    code = "prompt_too_long" if "context" in said.lower() else "bad_request"
    return EngineError(code, f"{host} refused the request (status {status}){said}")


def _message(body: bytes) -> str:
    try:
        data = msgspec.json.decode(body[:65536])
        text = data["error"]["message"] if isinstance(data["error"], dict) else data["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return ""
    return f": {str(text)[:300]}" if text else ""
