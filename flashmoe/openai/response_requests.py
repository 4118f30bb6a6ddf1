"""OpenAI's Responses requests, read into `GenerateRequest`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from backends.interface import ChatMessage, GenerateRequest, ToolCall
from flashmoe.openai import fields as f
from flashmoe.openai.fields import BadRequestError, read
from flashmoe.openai.messages import Tools, allowed, chosen, spec_of, unread
from flashmoe.openai.requests import Effort, effort_of


class Part(Struct):
    """A part of an item's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Item(Struct):
    """An input item of whichever type; without a type it is a message."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    call_id: f.CallId | None = None
    name: f.Name | None = None
    arguments: Annotated[str, Meta(max_length=f.MAX_ARGUMENTS)] | None = None
    output: str | list[Part] | None = None
    summary: list[Part] | None = None


class Tool(Struct):
    """A function, or a tool that runs on OpenAI's servers."""

    type: str
    name: f.Name | None = None
    description: f.Description | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(Struct):
    """Which function must be called."""

    type: str
    name: f.Name | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[Tool], Meta(max_length=f.MAX_TOOLS)] | None = None


class Reasoning(Struct):
    effort: Effort | None = None
    summary: str | None = None


class Format(Struct):
    """The answer's form."""

    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None


class Text(Struct):
    format: Format | None = None
    verbosity: str | None = None


class ResponseRequest(Struct, kw_only=True):
    """The body of ``/v1/responses``. Fields that aren't known are taken: this API's clients send new ones often."""

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=f.MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    tools: Annotated[list[Tool], Meta(max_length=f.MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    max_output_tokens: f.MaxTokens | None = None
    temperature: f.Temperature | None = None
    top_p: f.Share | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: Annotated[str, Meta(max_length=128)] | None = None
    metadata: dict[str, Any] | None = None
    background: Literal[False] | None = None
    conversation: None = None
    user: str | None = None


class Asked(Struct, frozen=True):
    """A checked request."""

    generate: GenerateRequest
    given: ResponseRequest
    messages: tuple[ChatMessage, ...]
    """The conversation without the instructions, which the next request brings anew."""


def parse_response(body: Any, request_id: str, before: dict[str, tuple[ChatMessage, ...]]) -> Asked:
    """Checks a body. `before`: the conversations that are kept, by their last response. Raises `BadRequestError`."""
    given = read(body, ResponseRequest)
    earlier: tuple[ChatMessage, ...] = ()
    if given.previous_response_id is not None:
        found = before.get(given.previous_response_id)
        if found is None:
            what = (
                f"the response {given.previous_response_id!r} isn't kept here any more; send the conversation as input"
            )
            raise BadRequestError(what, "previous_response_id", "previous_response_not_found")
        earlier = found
    messages = (*earlier, *_messages(given.input, earlier))
    if not messages:
        raise BadRequestError("input must hold a message", "input")
    system = (ChatMessage("system", given.instructions),) if given.instructions else ()
    tools = _tools(given.tools, given.tool_choice)
    effort, thinking = effort_of(given.reasoning.effort if given.reasoning is not None else None, None)
    sampling = msgspec.structs.replace(
        f.DEFAULTS,
        temperature=1.0 if given.temperature is None else given.temperature,
        top_p=1.0 if given.top_p is None else given.top_p,
        max_tokens=f.tokens_of(given.max_output_tokens, "max_output_tokens"),
        json_schema=_schema(given.text.format if given.text is not None else None),
    )
    last = messages[-1]
    generate = GenerateRequest(
        id=request_id,
        messages=_merged((*system, *messages)),
        sampling=sampling,
        enable_thinking=thinking,
        effort=effort,
        tools=tools.specs,
        tool_choice=tools.choice,
        forced_tool=tools.forced,
        parallel_tool_calls=given.parallel_tool_calls is not False,
        continue_final=last.role == "assistant" and not last.tool_calls,
    )
    return Asked(generate, given, messages)


def _text(content: str | list[Part] | None, where: str, *, result: bool = False) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    lines = []
    for part in content:
        text = part.text if part.type in ("input_text", "output_text", "text", "reasoning_text") else part.refusal
        if text is None and result:
            text = unread(part.type)
        if text is None:
            what = f"a part of type {part.type[:40]} is not understood; this model reads text"
            raise BadRequestError(f"{where}: {what}", "input")
        lines.append(text)
    return "\n".join(lines)


def _messages(given: str | list[Item], earlier: tuple[ChatMessage, ...]) -> list[ChatMessage]:
    """The items as messages. An assistant's text, thinking and calls that follow each other are one message."""
    if isinstance(given, str):
        return [ChatMessage("user", given)]
    out: list[ChatMessage] = []
    names = {call.id: call.name for message in earlier for call in message.tool_calls}

    def assistant(**more: Any) -> None:
        last = out[-1] if out and out[-1].role == "assistant" else None
        if last is None or ("thinking" in more and (last.content or last.tool_calls)):
            last = ChatMessage("assistant", "")
            out.append(last)
        calls = (*last.tool_calls, *more.pop("calls", ()))
        out[-1] = msgspec.structs.replace(last, **more, tool_calls=calls)

    for i, item in enumerate(given):
        where = f"input[{i}]"
        match item.type:
            case "message":
                text = _text(item.content, where)
                role = "system" if item.role == "developer" else item.role or "user"
                if role == "assistant":
                    last = out[-1] if out and out[-1].role == "assistant" and not out[-1].tool_calls else None
                    if last is not None and not last.content:
                        assistant(content=text)
                    else:
                        out.append(ChatMessage("assistant", text))
                else:
                    out.append(ChatMessage(role, text))
            case "function_call":
                if not item.call_id or not item.name:
                    raise BadRequestError(f"{where}: a function_call needs call_id and name", "input")
                names[item.call_id] = item.name
                assistant(calls=(ToolCall(item.call_id, item.name, (item.arguments or "").strip() or "{}"),))
            case "function_call_output":
                if not item.call_id:
                    raise BadRequestError(f"{where}: a function_call_output needs call_id", "input")
                text = _text(item.output, where, result=True)
                name = names.get(item.call_id, "")
                out.append(ChatMessage("tool", text, tool_call_id=item.call_id, name=name))
            case "reasoning":
                told = item.content if item.content else item.summary
                thinking = "\n".join(p.text or "" for p in told) if isinstance(told, list) else told or ""
                if thinking:
                    assistant(thinking=thinking)
            case _:
                what = f"items of type {item.type[:40]} are not understood; messages, function calls and reasoning are"
                raise BadRequestError(f"{where}: {what}", "input")
    return out


def _merged(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Instructions and developers' messages at the head are one: many templates know one alone."""
    n = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if n < 2:
        return messages
    return (ChatMessage("system", "\n\n".join(m.content for m in messages[:n])), *messages[n:])


def _tools(tools: list[Tool] | None, choice: Any) -> Tools:
    specs = []
    for i, tool in enumerate(tools or ()):
        if tool.type != "function":
            continue  # it would run on OpenAI's servers: the model isn't told of it
        if tool.name is None:
            raise BadRequestError(f"tools[{i}]: a function needs a name", "tools")
        specs.append(spec_of(tool.name, tool.description, tool.parameters, tool.strict, "tools"))
    if isinstance(choice, NamedTool):
        if choice.type == "allowed_tools":
            names = [t.name or "" for t in choice.tools or () if t.type == "function"]
            may = specs if choice.tools is None else allowed(specs, names)
            return chosen(may, choice.mode or "auto", "tool_choice", named=False)
        if choice.type != "function":
            what = f"tool_choice: {choice.type[:60]} runs on OpenAI's servers; here only functions can be called"
            raise BadRequestError(what, "tool_choice")
        return chosen(specs, choice.name or "", "tool_choice")
    return chosen(specs, choice, "tool_choice", named=False)


def _schema(form: Format | None) -> str | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return '{"type": "object"}'
    if form.schema is None:
        raise BadRequestError("text.format.schema must be an object", "text")
    return f.schema_text(form.schema, "text")
