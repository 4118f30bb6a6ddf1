"""Lines of a batch's input: the project's own form, and OpenAI's batch lines.

Own: ``{"id": "a1", "messages": […] | "prompt": "…", "max_tokens": 200, …settings}``; OpenAI's:
``{"custom_id": "a1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from backends.interface import GenerateRequest
from flashmoe.openai.requests import BadRequestError, parse_one

MAX_LINE = 16 * 1024 * 1024
_URLS = {"/v1/chat/completions": True, "/v1/completions": False}
"""Stands for the context while lines are read: the real one is known only once the model is loaded."""


class Item(Struct, frozen=True):
    """One request of a batch."""

    line: int
    id: str
    request: GenerateRequest
    chat: bool
    openai: bool
    """Answer in the form of OpenAI's batch output."""


class Problem(Struct, frozen=True):
    """A line that can't be run."""

    line: int
    message: str


def read_items(path: Path) -> Iterator[Item | Problem]:
    """Reads a JSONL file, an Item or a Problem for each line that isn't blank. Raises OSError."""
    seen: dict[str, int] = {}
    with path.open("rb") as f:
        number = 0
        while raw := f.readline(MAX_LINE + 1):
            number += 1
            if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
                while raw and not raw.endswith(b"\n"):  # skip the rest of this line
                    raw = f.readline(MAX_LINE)
                yield Problem(number, f"longer than {MAX_LINE // 2**20} MiB")
                continue
            if not raw.strip():
                continue
            try:
                item = _parse(raw, number)
            except BadRequestError as e:
                yield Problem(number, str(e))
                continue
            if item.id in seen:
                yield Problem(number, f"the id {item.id!r} was given on line {seen[item.id]} already")
                continue
            seen[item.id] = number
            yield item


def _parse(raw: bytes, number: int) -> Item:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BadRequestError(f"not valid JSON: {e}") from None
    if not isinstance(body, dict):
        raise BadRequestError("a line must be a JSON object")
    if "custom_id" in body:
        return _openai(body, number)
    item_id = _id(body.pop("id", f"line-{number}"), "id")
    if ("messages" in body) == ("prompt" in body):
        raise BadRequestError("give either messages or prompt")
    chat = "messages" in body
    if not chat and isinstance(body["prompt"], str):
        # in a batch a bare prompt is a question, as it is in `run`
        body["messages"], chat = [{"role": "user", "content": body.pop("prompt")}], True
        if isinstance(system := body.pop("system", None), str):
            body["messages"].insert(0, {"role": "system", "content": system})
    return Item(number, item_id, parse_one(body, _request_id(number), chat=chat), chat, openai=False)


def _openai(body: dict[str, Any], number: int) -> Item:
    item_id = _id(body["custom_id"], "custom_id")
    if body.get("method", "POST") != "POST":
        raise BadRequestError("method must be POST")
    url = body.get("url", "/v1/chat/completions")
    if url not in _URLS:
        raise BadRequestError(f"url must be one of {', '.join(_URLS)}")
    chat = _URLS[url]
    return Item(number, item_id, parse_one(body.get("body"), _request_id(number), chat=chat), chat, openai=True)


def _id(value: Any, name: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= 512:
        raise BadRequestError(f"{name} must be a string of 1 to 512 characters or a whole number")
    return value


def _request_id(number: int) -> str:
    return f"batch-{number}"
