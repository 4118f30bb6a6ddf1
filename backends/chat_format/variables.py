"""What a chat template is given: messages, tools and switches under the names that it uses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from backends.chat_format import history
from backends.chat_format.format import ChatFormat
from backends.chat_format.told_tools import in_text, with_tools
from backends.interface import ChatMessage, GenerateRequest, ToolCall, ToolSpec

_BUDGETS = {"low": 512, "medium": 2048, "high": 8192}
_SWITCHES = ("enable_thinking", "thinking")
_EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength", "effort")


def mentions(source: str, name: str) -> bool:
    """Whether a template reads a variable of this name (a key of a message, or a word of its text, doesn't count)."""
    before = r"(?:\bif|\band|\bor|\bnot|\belif|\bin|[=(+~,]|\{\{-?|\belse)"
    return re.search(rf"{before}\s*{name}\b(?!['\"(])", source) is not None


def switches(source: str, thinking: bool | None, effort: str | None) -> dict[str, Any]:
    """The variables that turn thinking on or off in a template, or say how much of it there shall be."""
    if effort is not None:
        thinking = True
    given: dict[str, Any] = {}
    if thinking is None:
        return given
    given["enable_thinking"] = given["thinking"] = thinking
    if mentions(source, "thinking_mode"):
        given["thinking_mode"] = "enabled" if thinking else "disabled"
    if mentions(source, "thinking_option"):
        given["thinking_option"] = "on" if thinking else "off"
    if mentions(source, "reasoning") and "'off'" in source:
        given["reasoning"] = "on" if thinking else "off"
    if mentions(source, "thinking_budget"):
        if not thinking:
            given["thinking_budget"] = 0
        elif effort is not None:
            given["thinking_budget"] = _BUDGETS[effort]
    for name in _EFFORTS:
        if mentions(source, name):
            if not thinking:
                word = _least(source)
                if word:
                    given[name] = word
            elif effort is not None:
                given[name] = _nearest(source, effort)
    return given


def _least(source: str) -> str:
    """What a template that knows degrees of thinking calls the least of it; '' where it has no word for that."""
    for word in ("no_think", "none", "minimal"):
        if f"'{word}'" in source or f'"{word}"' in source or f"/{word}" in source:
            return word
    return "low" if "<|channel|>" in source else ""


def _nearest(source: str, effort: str) -> str:
    """A degree that the template knows: one that checks for low and high alone would refuse medium."""
    if effort != "medium" or not re.search(r"['\"/]high", source):
        return effort
    listed = re.findall(r"\[[^\[\]]*['\"]high['\"][^\[\]]*\]", source)  # those that it refuses all others for
    known = all("medium" in degrees for degrees in listed) if listed else re.search(r"['\"/`]medium", source)
    return effort if known else "high"


def switch_names(source: str) -> tuple[str, str]:
    """The template's own names for the switch of thinking and for its degree; '' where it has none."""
    switch = next((n for n in (*_SWITCHES, "thinking_mode", "thinking_option") if mentions(source, n)), "")
    effort = next((n for n in (*_EFFORTS, "thinking_budget") if mentions(source, n)), "")
    return switch, effort


def tool_of(tool: ToolSpec) -> dict[str, Any]:
    """A tool as templates expect it."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def messages_for(
    messages: Sequence[ChatMessage],
    fmt: ChatFormat,
    source: str,
    tools: Sequence[ToolSpec] = (),
    *,
    merge_late: bool = False,
) -> list[dict[str, Any]]:
    """Messages as a template expects them: roles that it knows, the system message where it takes one (`merge_late`: at
    the beginning only), arguments of calls as a mapping or as text, ids of the form that it asks for, and tools where
    it knows none itself."""
    plain = [_message(m, fmt, source) for m in messages]
    if fmt.calls_in_text:
        plain = in_text(plain, [tool_of(t) for t in tools])
    elif fmt.tools_in_text and tools:
        plain = with_tools(plain, [tool_of(t) for t in tools])
    if fmt.single_calls:
        plain = history.one_call_each(plain)
    if fmt.calls_left_out:
        plain = history.calls_as_text(plain, fmt.calls)
    if fmt.system == "merge":
        plain = history.merged_systems(plain)
    elif merge_late:
        plain = [*plain[:1], *history.merged_systems(plain[1:])]
    if fmt.null_content:
        plain = [{**m, "content": m["content"] or None} if m.get("tool_calls") else m for m in plain]
    return plain


def _message(message: ChatMessage, fmt: ChatFormat, source: str) -> dict[str, Any]:
    role = message.role
    if role == "developer" and not fmt.developer:
        role = "system"
    plain: dict[str, Any] = {"role": role, "content": message.content}
    if message.thinking:
        plain["reasoning_content"] = message.thinking  # Qwen, GLM, DeepSeek
        plain["thinking"] = message.thinking  # gpt-oss
        if "reasoning" in source and "message.reasoning " in source:
            plain["reasoning"] = message.thinking
    if message.tool_calls:
        plain["tool_calls"] = [_call(c, i, fmt) for i, c in enumerate(message.tool_calls)]
    if role == "tool":
        plain["tool_call_id"] = _id(message.tool_call_id, message.name, 0, fmt)
        if message.name:
            plain["name"] = message.name
    return plain


def _call(call: ToolCall, index: int, fmt: ChatFormat) -> dict[str, Any]:
    arguments: Any = call.arguments
    if not fmt.calls.arguments_as_text:
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            arguments = call.arguments
        if not isinstance(arguments, Mapping):
            arguments = {"arguments": arguments}
    return {
        "id": _id(call.id, call.name, index, fmt),
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _id(given: str, name: str, index: int, fmt: ChatFormat) -> str:
    style = fmt.calls.id_style
    if style == "nine" and not re.fullmatch(r"[a-zA-Z0-9]{9}", given):
        letters = re.sub(r"[^a-zA-Z0-9]", "", given)
        return (letters[-9:] or str(index)).rjust(9, "0")
    if style == "named" and not re.fullmatch(r"functions\..+:\d+", given):
        return f"functions.{name}:{index}" if name else given
    return given


def variables_for(
    request: GenerateRequest, messages: list[dict[str, Any]], source: str, *, opens: bool, bos: str, eos: str
) -> dict[str, Any]:
    """Everything that a template is given. What a request leaves out is left out here, too: templates ask whether
    ``tools`` or ``documents`` are defined."""
    today = datetime.now()  # the day, not the hour: a prompt that changes by the minute finds no KV cache
    dates = {"date_string": "%d %b %Y", "datetime": "%b %d %Y", "current_date": "%Y-%m-%d"}
    variables: dict[str, Any] = {
        **{name: today.strftime(form) for name, form in dates.items() if mentions(source, name)},
        **switches(source, request.enable_thinking, request.effort),
        **request.template_args,
        "messages": messages,
        "add_generation_prompt": opens,
        "bos_token": bos,
        "eos_token": eos,
    }
    if request.tools:
        variables["tools"] = [tool_of(t) for t in request.tools]
    if mentions(source, "functions"):  # firefunction's name for them
        variables["functions"] = json.dumps([tool_of(t)["function"] for t in request.tools], indent=4)
    if mentions(source, "tool_choice") and request.tools and request.tool_choice != "auto":
        variables["tool_choice"] = request.tool_choice
    return variables
