"""The messages of OpenAI's chat completions, and the tools beside them, as the engine takes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from backends.interface import ChatMessage, ToolCall, ToolSpec
from flashmoe.openai.fields import (
    MAX_ARGUMENTS,
    MAX_MESSAGES,
    MAX_TOOLS,
    BadRequestError,
    CallId,
    Description,
    Name,
    read,
    schema_text,
)


class Part(Struct):
    """A part of a message's content; only text is understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Function(Struct):
    """The name and the arguments of a call; arguments are JSON text, or the object itself as some clients send it."""

    name: Name
    arguments: Annotated[str, Meta(max_length=MAX_ARGUMENTS)] | dict[str, Any] = "{}"


class Call(Struct):
    """A call that an assistant's message made."""

    function: Function
    id: CallId | None = None
    type: str | None = None


class Message(Struct):
    """One message. Fields that other servers' answers have, and clients send back, are taken and mean nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class FunctionSpec(Struct):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: Name
    description: Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool; functions are all that runs here."""

    type: str
    function: FunctionSpec | None = None


class NamedFunction(Struct):
    name: Name


class AllowedTools(Struct):
    """Which of the tools may be called, and whether one must be."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(max_length=MAX_TOOLS)]


class NamedTool(Struct):
    """Which function must be called, or which may be."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


ToolChoice = Literal["none", "auto", "required", "any"] | NamedTool


class Tools(Struct, frozen=True):
    """What `GenerateRequest` says about tools."""

    specs: tuple[ToolSpec, ...] = ()
    choice: Literal["auto", "none", "required"] = "auto"
    forced: str | None = None


def unread(kind: str) -> str:
    """What the model reads in place of an image in a tool's result: refused, it would end the agent's conversation, in
    which it stays."""
    return f"[{kind[:40]}: it can't be shown here, this model reads text]"


def text_of(content: str | list[Part] | None, where: str, *, result: bool = False) -> str:
    """A message's text; its parts are lines. `result`: of a tool."""
    if content is None or isinstance(content, str):
        return content or ""
    lines = []
    for part in content:
        text = part.text if part.type in ("text", "input_text", "output_text") else part.refusal
        if text is None and result:
            text = unread(part.type)
        if text is None:
            raise BadRequestError(
                f"{where}: a part of type {part.type[:40]} is not understood; this model reads text", "messages"
            )
        lines.append(text)
    return "\n".join(lines)


def messages_of(given: list[Message]) -> tuple[ChatMessage, ...]:
    """The messages as the engine takes them. Raises `BadRequestError`."""
    if not given:
        raise BadRequestError("messages must be a list with at least one message", "messages")
    out: list[ChatMessage] = []
    names: dict[str, str] = {}
    for i, message in enumerate(given):
        role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
        content = text_of(message.content, f"messages[{i}].content", result=role == "tool")
        text = content or message.refusal or ""
        calls = tuple(_call(call, i, k) for k, call in enumerate(message.tool_calls or ()))
        if calls and role != "assistant":
            raise BadRequestError(f"messages[{i}]: only an assistant's message can have tool_calls", "messages")
        names.update({call.id: call.name for call in calls})
        call_id = message.tool_call_id or ""
        if role == "tool" and not call_id and message.role == "tool":
            raise BadRequestError(f"messages[{i}]: a message of role tool needs tool_call_id", "messages")
        thinking = message.reasoning_content or message.reasoning or ""
        name = message.name or names.get(call_id, "") if role == "tool" else ""
        out.append(
            ChatMessage(
                role, text, thinking, tool_calls=calls, tool_call_id=call_id if role == "tool" else "", name=name
            )
        )
    return tuple(out)


def _call(call: Call, i: int, k: int) -> ToolCall:
    arguments = call.function.arguments
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    return ToolCall(call.id or f"call_{i}_{k}", call.function.name, arguments.strip() or "{}")


def tools_of(tools: list[Tool] | None, choice: ToolChoice | None) -> Tools:
    """Tools and which of them must be called. Raises `BadRequestError`."""
    specs = []
    for i, tool in enumerate(tools or ()):
        if tool.type != "function" or tool.function is None:
            raise BadRequestError(f"tools[{i}]: only tools of type function work here", "tools")
        f = tool.function
        specs.append(spec_of(f.name, f.description, f.parameters, f.strict, "tools"))
    if isinstance(choice, NamedTool):
        if choice.allowed_tools is not None:
            names = [t.function.name if t.function is not None else "" for t in choice.allowed_tools.tools]
            return chosen(allowed(specs, names), choice.allowed_tools.mode, "tool_choice", named=False)
        return chosen(specs, choice.function.name if choice.function is not None else "", "tool_choice")
    return chosen(specs, choice, "tool_choice", named=False)


def spec_of(
    name: str, description: str | None, parameters: dict[str, Any] | None, strict: bool | None, param: str
) -> ToolSpec:
    """One tool, its schema bounded."""
    schema_text(parameters or {}, param)
    return ToolSpec(name, description or "", parameters or {}, bool(strict))


def chosen(specs: list[ToolSpec], choice: str | None, param: str, *, named: bool = True) -> Tools:
    """The tools with a choice, which is a word or (`named`) a tool's name."""
    known = {spec.name for spec in specs}
    if len(known) < len(specs):
        raise BadRequestError("two tools have the same name", "tools")
    if named:
        if choice not in known:
            raise BadRequestError(f"{param} names {(choice or '')[:80]!r}, which is not among the tools", param)
        return Tools(tuple(specs), "required", choice)
    if not specs:
        if choice in ("required", "any"):
            raise BadRequestError(f"{param} is {choice}, but there are no tools", param)
        return Tools()
    if choice in ("required", "any"):
        return Tools(tuple(specs), "required")
    return Tools(tuple(specs), "none" if choice == "none" else "auto")


def allowed(specs: list[ToolSpec], names: list[str]) -> list[ToolSpec]:
    """Those of the tools that may be called. Raises `BadRequestError` for a name that none has."""
    if unknown := set(names) - {spec.name for spec in specs}:
        what = f"tool_choice names {min(unknown)[:80]!r}, which is not among the tools"
        raise BadRequestError(what, "tool_choice")
    return [spec for spec in specs if spec.name in names]


class _Given(Struct):
    """What can be read apart from a request."""

    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None


def parse_messages(value: Any) -> tuple[ChatMessage, ...]:
    """Messages as a request has them, from JSON that was parsed. Raises `BadRequestError`."""
    return messages_of(read({"messages": value}, _Given).messages or [])


def parse_tools(value: Any) -> tuple[ToolSpec, ...]:
    """Tools as a request has them, from JSON that was parsed. Raises `BadRequestError`."""
    return tools_of(read({"tools": value}, _Given).tools, None).specs
