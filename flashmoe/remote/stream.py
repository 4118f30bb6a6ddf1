"""What a server sends for an answer: server-sent events, or one JSON object from a server that doesn't stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from backends.interface import EngineError

MAX_EVENT = 4 * 1024 * 1024
"""Bytes: a server-sent event, or a whole answer, longer than this is not an answer but an attack or a fault."""
_DONE = b"[DONE]"


def objects_of(pieces: Iterable[bytes], host: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, until ``[DONE]``; or the one object that the body is.

    Raises `EngineError` ``network``: a web page, what isn't JSON, what is too large.
    """
    buffer, data, begun = bytearray(), b"", False
    for piece in pieces:
        buffer += piece
        if not begun:
            start = bytes(buffer[:64]).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if start == b"{":
                if len(buffer) > MAX_EVENT:
                    raise _too_large(host)
                continue  # no stream: it is read to its end
            if start == b"<":
                raise EngineError(
                    "network",
                    f"{host} sent a web page instead of an answer",
                    "check the address; it usually ends in /v1.",
                )
            begun = bool(start)
        while (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end]).rstrip(b"\r")
            del buffer[: end + 1]
            if not line:  # the end of an event
                if data:
                    raise _no_answer(host)
                continue
            if not line.startswith(b"data:"):
                continue
            data = b"\n".join([data, line[5:].strip()]) if data else line[5:].strip()
            if data == _DONE:
                return
            # An event may have several lines of data; some servers end one without a free line.
            decoded = _decoded(data)
            if decoded is not _CUT:
                data = b""
                if isinstance(decoded, dict):
                    yield decoded
        if len(buffer) + len(data) > MAX_EVENT:
            raise _too_large(host)
    if not begun and buffer.strip():
        decoded = _decoded(bytes(buffer.lstrip(b"\xef\xbb\xbf")))
        if not isinstance(decoded, dict):
            raise _no_answer(host)
        yield decoded
    elif data:
        raise _no_answer(host)


_CUT = object()


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _CUT


def _no_answer(host: str) -> EngineError:
    return EngineError("network", f"{host} sent something that isn't an answer.")


def _too_large(host: str) -> EngineError:
    return EngineError("network", f"{host} sent something too large to be an answer.")
