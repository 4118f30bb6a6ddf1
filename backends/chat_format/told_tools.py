"""Tools for models whose chat template knows none: told in the system message, called and answered in plain text.

The form is the one that most models were trained on that have none of their own (Hermes'): a call as JSON between
``<tool_call>`` and ``</tool_call>``, a result between ``<tool_response>`` and ``</tool_response>`` in a user's message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from backends.chat_format.format import Calls

CALLS_IN_TEXT = Calls(kind="json", start=("<tool_call>",), end=("</tool_call>",))
_TOLD = """You may call these functions; each is described by a JSON schema:
<tools>
{tools}
</tools>"""
_HOW = """
To call one, write its name and its arguments as JSON, and nothing else:
<tool_call>
{{"name": NAME, "arguments": ARGUMENTS}}
</tool_call>"""


def in_text(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without tools, calls and the role ``tool``, which say the same."""
    out: list[dict[str, Any]] = []
    for before, message in zip([None, *messages], messages, strict=False):
        text = _as_text(message)
        if message["role"] == "tool" and before is not None and before["role"] == "tool":
            out[-1]["content"] += "\n" + text["content"]  # templates refuse two of a user's messages in a row
        else:
            out.append(text)
    return with_tools(out, tools, _TOLD + _HOW) if tools else out


def with_tools(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], text: str = ""
) -> list[dict[str, Any]]:
    """Messages with a system message that tells the tools."""
    out = list(messages)
    told = (text or _TOLD).format(tools="\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools))
    if out and out[0]["role"] in ("system", "developer"):
        out[0] = {**out[0], "content": f"{out[0]['content']}\n\n{told}" if out[0]["content"] else told}
    else:
        out.insert(0, {"role": "system", "content": told})
    return out


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        "<tool_call>\n" + json.dumps(call["function"], ensure_ascii=False) + "\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    text = [message["content"]] if message["content"] or not calls else []
    return {**{k: v for k, v in message.items() if k != "tool_calls"}, "content": "\n".join([*text, *calls])}
