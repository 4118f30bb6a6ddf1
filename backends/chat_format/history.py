"""Messages in the way that a template can take them: what it refuses or drops stands somewhere else instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from backends.chat_format.format import Calls

SYSTEM_ROLES = ("system", "developer")


def merged_systems(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """System messages in front of the user message that follows them."""
    out: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] in SYSTEM_ROLES:
            waiting.append(message["content"])
            continue
        if waiting and message["role"] == "user":
            message = {**message, "content": "\n".join([*waiting, message["content"]])}
            waiting = []
        out.append(message)
    if waiting:
        out.append({"role": "user", "content": "\n".join(waiting)})
    return out


def one_call_each(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several calls of one message as one after the other, each with its result: for templates that know one at a
    time."""
    out: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        results = []
        while at < len(messages) and messages[at]["role"] == "tool" and message.get("tool_calls"):
            results.append(messages[at])
            at += 1
        calls = message.get("tool_calls") or []
        if len(calls) < 2 or not results:
            out += [message, *results]
            continue
        for number, call in enumerate(calls):
            mine = next((r for r in results if call["id"] and r.get("tool_call_id") == call["id"]), None)
            mine = mine or (results[0] if results else None)
            out.append(
                {"role": "assistant", "content": "", "tool_calls": [call]}
                if number
                else {**message, "tool_calls": [call]}
            )
            if mine is not None:
                results.remove(mine)
                out.append(mine)
        out += results
    return out


def calls_as_text(messages: Sequence[dict[str, Any]], calls: Calls) -> list[dict[str, Any]]:
    """Calls as a model of this format writes them, in the messages' texts: for templates that leave them out."""
    return [_with_calls(m, calls) if m.get("tool_calls") else m for m in messages]


def _with_calls(message: dict[str, Any], calls: Calls) -> dict[str, Any]:
    functions = [call["function"] for call in message["tool_calls"]]
    if calls.kind == "python":
        listed = [f"{f['name']}({', '.join(f'{k}={_json(v)}' for k, v in f['arguments'].items())})" for f in functions]
        written = f"{' '.join(calls.start)}[{', '.join(listed)}]{' '.join(calls.end)}"
    else:
        objects = [_json({calls.name_key: f["name"], calls.arguments_key: f["arguments"]}) for f in functions]
        inside = [f"[{', '.join(objects)}]"] if calls.in_list else objects
        written = "\n".join("\n".join([*calls.start, one, *calls.end]) for one in inside)
    rest = {k: v for k, v in message.items() if k != "tool_calls"}
    return {**rest, "content": "\n".join(t for t in (message["content"], written) if t)}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def alternating(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two of a user's messages in a row as one, and an empty answer between a result and a user's message."""
    out: list[dict[str, Any]] = []
    for message in messages:
        if out and message["role"] == out[-1]["role"] == "user":
            out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n\n{message['content']}"}
            continue
        if out and message["role"] == "user" and out[-1]["role"] == "tool":
            out.append({"role": "assistant", "content": ""})
        out.append(message)
    return out


def plain_types(schema: Any) -> Any:
    """A schema without the type null beside others: templates that write types in a way of their own don't know it."""
    if isinstance(schema, list):
        return [plain_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: plain_types(value) for key, value in schema.items()}
    said = plain.get("type")
    if isinstance(said, list):
        named = [t for t in said if t != "null"]
        plain["type"] = named[0] if len(named) == 1 else named or "null"
    return {k: v for k, v in plain.items() if not (k == "type" and v == "null")}


def simple_types(tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tools whose parameters are texts and numbers: lists and objects are JSON as text."""
    return [{**tool, "function": _simple(tool["function"])} for tool in tools]


def _simple(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {}
    properties = {}
    for key, value in (parameters.get("properties") or {}).items():
        known = isinstance(value, dict) and value.get("type") in ("string", "number", "integer", "boolean")
        said = str(value.get("description", "")) if isinstance(value, dict) else ""
        properties[key] = value if known else {"type": "string", "description": f"{said} (JSON)".strip()}
    return {**function, "parameters": {**parameters, "properties": properties}}
