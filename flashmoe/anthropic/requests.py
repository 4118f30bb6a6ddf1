"""Anthropic's Messages requests, read into `GenerateRequest`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from backends.interface import ChatMessage, GenerateRequest, Sampling, ToolCall
from flashmoe.openai import fields as f
from flashmoe.openai.fields import BadRequestError, read
from flashmoe.openai.messages import Tools, chosen, spec_of, unread

_BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n*")
"""A line that one client puts at the head of its instructions. It changes with each request: read as part of the prompt
it would have the whole of it computed anew, every time."""
MAX_THINKING = 1 << 20


class Block(Struct):
    """A block of a message's content, of whichever type; ``cache_control`` is taken and means nothing here, since every
    prompt is kept."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: f.CallId | None = None
    name: f.Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: f.CallId | None = None
    content: Any = None
    is_error: bool | None = None


class Message(Struct):
    """One message; instructions in the middle come from newer clients."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct):
    """A tool of the client's own. Those that Anthropic's servers run have a `type` of theirs."""

    name: f.Name
    type: str | None = None
    description: f.Description | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class ToolChoice(Struct):
    """Which tool must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: f.Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    """Whether to think first; how long is the model's affair."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=0, le=MAX_THINKING)] | None = None


class OutputFormat(Struct):
    """A JSON schema that the answer must match."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    """How much to think, and the answer's form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class _Prompt(Struct, kw_only=True):
    """Fields that make the prompt."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=f.MAX_MESSAGES)]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: Annotated[list[Tool], Meta(max_length=f.MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: Annotated[list[Any], Meta(max_length=0)] | None = None


class MessagesRequest(_Prompt, kw_only=True):
    """The body of ``/v1/messages``. Fields that aren't known are taken: this API's clients send new ones often."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    stream: bool | None = None
    temperature: f.Share | None = None
    top_p: f.Share | None = None
    top_k: f.TopK | None = None
    stop_sequences: Annotated[list[f.Stop], Meta(max_length=f.MAX_STOPS)] | None = None
    output_format: OutputFormat | None = None


class CountRequest(_Prompt, kw_only=True):
    """The body of ``/v1/messages/count_tokens``."""


class Asked(Struct, frozen=True):
    """A checked request."""

    generate: GenerateRequest
    stream: bool
    model: str | None


def parse_messages(body: Any, request_id: str) -> Asked:
    """Checks a body for ``/v1/messages``. Raises `BadRequestError`."""
    given = read(body, MessagesRequest)
    schema = given.output_format or (given.output_config.format if given.output_config is not None else None)
    sampling = msgspec.structs.replace(
        f.DEFAULTS,
        temperature=1.0 if given.temperature is None else given.temperature,
        top_p=1.0 if given.top_p is None else given.top_p,
        top_k=max(0, given.top_k or 0),
        stop=tuple(given.stop_sequences or ()),
        max_tokens=given.max_tokens,
        json_schema=None if schema is None else f.schema_text(schema.schema, "output_format"),
    )
    return Asked(_generate(given, request_id, sampling), bool(given.stream), given.model)


def parse_count(body: Any, request_id: str) -> GenerateRequest:
    """Checks a body for ``/v1/messages/count_tokens``. Raises `BadRequestError`."""
    return _generate(read(body, CountRequest), request_id, f.DEFAULTS)


def _generate(given: _Prompt, request_id: str, sampling: Sampling) -> GenerateRequest:
    messages = _system(given.system)
    names: dict[str, str] = {}
    for i, message in enumerate(given.messages):
        messages += _messages(message, i, names)
    tools = _tools(given.tools, given.tool_choice)
    last = messages[-1]
    return GenerateRequest(
        id=request_id,
        messages=tuple(messages),
        sampling=sampling,
        enable_thinking=None if given.thinking is None else given.thinking.type != "disabled",
        effort=_effort(given.output_config),
        tools=tools.specs,
        tool_choice=tools.choice,
        forced_tool=tools.forced,
        parallel_tool_calls=not (given.tool_choice and given.tool_choice.disable_parallel_tool_use),
        continue_final=last.role == "assistant" and not last.tool_calls,
    )


def _effort(config: OutputConfig | None) -> Literal["low", "medium", "high"] | None:
    if config is None or config.effort is None:
        return None
    return config.effort if config.effort in ("low", "medium") else "high"


def _system(given: str | list[Block] | None) -> list[ChatMessage]:
    if given is None:
        return []
    texts = [given] if isinstance(given, str) else [_text(block, "system") for block in given]
    if texts and _BILLING.match(texts[0]):
        texts[0] = _BILLING.sub("", texts[0], count=1)
    text = "\n\n".join(t for t in texts if t.strip())
    return [ChatMessage("system", text)] if text else []


def _text(block: Block, where: str) -> str:
    if block.type == "text" and block.text is not None:
        return block.text
    what = f"a block of type {block.type[:40]} is not understood; this model reads text"
    raise BadRequestError(f"{where}: {what}", "messages")


def _messages(message: Message, i: int, names: dict[str, str]) -> list[ChatMessage]:
    """What one message comes to: results of tools are messages of their own, before the text beside them."""
    where = f"messages[{i}].content"
    if isinstance(message.content, str):
        return [ChatMessage(message.role, message.content)]
    texts: list[str] = []
    thinking: list[str] = []
    calls: list[ToolCall] = []
    results: list[ChatMessage] = []
    for block in message.content:
        match block.type:
            case "thinking" if message.role == "assistant":
                thinking.append(block.thinking or "")
            case "redacted_thinking":
                pass  # another server's, unreadable
            case "tool_use" if message.role == "assistant":
                if not block.id or not block.name:
                    raise BadRequestError(f"{where}: a tool_use block needs an id and a name", "messages")
                names[block.id] = block.name
                calls.append(ToolCall(block.id, block.name, msgspec.json.encode(block.input or {}).decode()))
            case "tool_result" if message.role == "user":
                results.append(_result(block, where, names))
            case _:
                texts.append(_text(block, where))
    text = "\n".join(texts)
    if message.role == "assistant":
        return [ChatMessage("assistant", text, "\n".join(thinking), tool_calls=tuple(calls))]
    said = [ChatMessage(message.role, text)] if text or not results else []
    return [*results, *said]


def _result(block: Block, where: str, names: dict[str, str]) -> ChatMessage:
    if not block.tool_use_id:
        raise BadRequestError(f"{where}: a tool_result block needs a tool_use_id", "messages")
    content = block.content
    if isinstance(content, list):
        try:
            parts = msgspec.convert(content, list[Block])
        except msgspec.ValidationError:
            content = 0
        else:
            content = "\n".join(part.text if part.text is not None else unread(part.type) for part in parts)
    if content is not None and not isinstance(content, str):
        raise BadRequestError(f"{where}: the content of a tool_result must be text or blocks", "messages")
    text = content or ""
    if block.is_error:
        text = f"Error: {text}" if text else "Error"
    return ChatMessage("tool", text, tool_call_id=block.tool_use_id, name=names.get(block.tool_use_id, ""))


def _tools(tools: list[Tool] | None, choice: ToolChoice | None) -> Tools:
    specs = []
    for i, tool in enumerate(tools or ()):
        if tool.type not in (None, "custom"):
            what = f"{tool.type[:60]} runs on Anthropic's servers; here only a client's own tools work"
            raise BadRequestError(f"tools[{i}]: {what}", "tools")
        specs.append(spec_of(tool.name, tool.description, tool.input_schema, tool.strict, "tools"))
    if choice is None:
        return chosen(specs, None, "tool_choice", named=False)
    if choice.type == "tool":
        return chosen(specs, choice.name or "", "tool_choice")
    return chosen(specs, choice.type, "tool_choice", named=False)
