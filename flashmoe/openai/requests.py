"""OpenAI's chat and text completion requests, read into `GenerateRequest`: for `serve` and for OpenAI's batch lines.

Requests come from anywhere, so every field is checked: what changes the answer and isn't supported is refused by name,
what is harmless is accepted, what is unknown is refused as OpenAI's own server does.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from backends.errors import ReportedError
from backends.interface import ChatMessage, GenerateRequest, Sampling, ToolCall, ToolSpec

MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_CHARS = 512
MAX_SCHEMA_BYTES = 64 * 1024
MAX_TOOLS = 512
MAX_TOOL_NAME = 200
MAX_TOOLS_BYTES = 4 << 20

_SAMPLING = {
    "temperature": (0.0, 5.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.0, 10.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "stream_options", "verbosity", "cache_prompt",
})  # fmt: skip
_UNSUPPORTED = frozenset({
    "functions", "function_call", "logprobs", "top_logprobs", "logit_bias", "modalities",
    "audio", "prediction", "best_of", "echo", "suffix", "web_search_options",
})  # fmt: skip
_READ = frozenset({
    "model", "messages", "prompt", "stream", "stop", "seed", "max_tokens", "max_completion_tokens", "n", "top_k",
    "response_format", "reasoning_effort", "chat_template_kwargs", "grammar", "tools", "tool_choice",
    "parallel_tool_calls",
}) | _SAMPLING.keys()  # fmt: skip


class BadRequestError(ReportedError):
    """A request that can't be run; `param` names the field."""

    def __init__(self, what: str, param: str | None = None, *, advice: str = "") -> None:
        super().__init__("bad_request", what, advice)
        self.param = param


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A checked request: what to generate, and how the caller wants it back."""

    generate: GenerateRequest
    stream: bool
    include_usage: bool
    model: str | None


def _number(body: dict[str, Any], key: str, low: float, high: float) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequestError(f"{key} must be a number from {low:g} to {high:g}", key)
    return float(value)


def _integer(body: dict[str, Any], key: str, low: int, high: int) -> int | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequestError(f"{key} must be a whole number from {low} to {high}", key)
    return value


def _boolean(body: dict[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise BadRequestError(f"{key} must be true or false", key)
    return bool(value)


def _text(content: Any, where: str) -> str:
    """A message's content: a string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise BadRequestError(f"{where}: only parts of type text are understood", "messages")
            parts.append(part["text"])
        return "\n".join(parts)
    raise BadRequestError(f"{where} must be a string or a list of text parts", "messages")


def parse_messages(value: Any) -> tuple[ChatMessage, ...]:
    """Checks a list of `{"role", "content"}`; raises `BadRequestError`."""
    if not isinstance(value, list) or not value:
        raise BadRequestError("messages must be a list with at least one message", "messages")
    if len(value) > MAX_MESSAGES:
        raise BadRequestError(f"messages has {len(value)} entries, at most {MAX_MESSAGES} are taken", "messages")
    out: list[ChatMessage] = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRequestError(f"messages[{i}] must be an object", "messages")
        role = message.get("role")
        if role == "developer":  # OpenAI's newer word for it
            role = "system"
        if role not in ("system", "user", "assistant", "tool"):
            raise BadRequestError(f"messages[{i}].role must be system, developer, user, assistant or tool", "messages")
        thinking = message.get("reasoning_content") or ""
        if not isinstance(thinking, str):
            raise BadRequestError(f"messages[{i}].reasoning_content must be a string", "messages")
        calls = _tool_calls(message.get("tool_calls"), i) if role == "assistant" else ()
        call_id = message.get("tool_call_id") or ""
        if not isinstance(call_id, str):
            raise BadRequestError(f"messages[{i}].tool_call_id must be a string", "messages")
        named = next((c.name for m in reversed(out) for c in m.tool_calls if c.id == call_id), "")
        name = message.get("name")
        out.append(
            ChatMessage(
                role,
                _text(message.get("content"), f"messages[{i}].content"),
                thinking,
                tool_calls=calls,
                tool_call_id=call_id if role == "tool" else "",
                name=(name if isinstance(name, str) else named) if role == "tool" else "",
            )
        )
    return tuple(out)


def _tool_calls(value: Any, i: int) -> tuple[ToolCall, ...]:
    """An assistant's `tool_calls`."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise BadRequestError(f"messages[{i}].tool_calls must be a list of at most {MAX_TOOLS} calls", "messages")
    calls = []
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequestError(f"messages[{i}].tool_calls: each call needs a function with a name", "messages")
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if not isinstance(arguments, str | None):
            raise BadRequestError(f"messages[{i}].tool_calls: arguments must be JSON text", "messages")
        call_id = call.get("id")
        calls.append(ToolCall(call_id if isinstance(call_id, str) else "", function["name"], arguments or "{}"))
    return tuple(calls)


def parse_tools(value: Any) -> tuple[ToolSpec, ...]:
    """Checks a request's `tools`; raises `BadRequestError`."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise BadRequestError(f"tools must be a list of at most {MAX_TOOLS} tools", "tools")
    tools: list[ToolSpec] = []
    for i, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type", "function") != "function":
            raise BadRequestError(f"tools[{i}] must be of type function, with a function", "tools")
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_TOOL_NAME:
            raise BadRequestError(f"tools[{i}].function.name must be text of 1 to {MAX_TOOL_NAME} characters", "tools")
        if parameters is not None and not isinstance(parameters, dict):
            raise BadRequestError(f"tools[{i}].function.parameters must be a JSON schema", "tools")
        description = function.get("description")
        tools.append(
            ToolSpec(
                name,
                description if isinstance(description, str) else "",
                parameters or {},
                strict=function.get("strict") is True,
            )
        )
    if len(msgspec.json.encode(tools)) > MAX_TOOLS_BYTES:
        raise BadRequestError(f"tools are larger than {MAX_TOOLS_BYTES >> 20} MiB", "tools")
    return tuple(tools)


def parse_tool_choice(
    value: Any, tools: tuple[ToolSpec, ...]
) -> tuple[Literal["auto", "none", "required"], str | None]:
    """`tool_choice` as (mode, the tool that must be called); raises `BadRequestError`."""
    if value is None or value == "auto":
        return "auto", None
    if value == "none":
        return "none", None
    if isinstance(value, dict):
        function = value.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not any(t.name == name for t in tools):
            raise BadRequestError(f"tool_choice names {str(name)[:80]!r}, which is none of the tools", "tool_choice")
        return "required", name
    if value == "required":
        if not tools:
            raise BadRequestError("tool_choice is required, but there are no tools", "tool_choice")
        return "required", None
    raise BadRequestError("tool_choice must be auto, none, required or a function", "tool_choice")


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise BadRequestError(f"stop must be a string or a list of at most {MAX_STOPS} strings", "stop")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise BadRequestError(f"each stop must be a string of 1 to {MAX_STOP_CHARS} characters", "stop")
    return tuple(stops)


def _schema(value: Any) -> str | None:
    """`response_format` as a JSON schema text, None for free text."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return msgspec.json.encode(schema).decode() if isinstance(schema, dict) else '{"type": "object"}'
    if kind == "json_schema":
        holder = value.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, dict) else None
        if not isinstance(schema, dict):
            raise BadRequestError("response_format.json_schema.schema must be an object", "response_format")
        text = msgspec.json.encode(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            raise BadRequestError(f"the JSON schema is larger than {MAX_SCHEMA_BYTES // 1024} KiB", "response_format")
        return text.decode()
    raise BadRequestError("response_format.type must be text, json_object or json_schema", "response_format")


def _template_args(body: dict[str, Any]) -> tuple[dict[str, str | int | float | bool], bool | None]:
    args: dict[str, str | int | float | bool] = {}
    extra = body.get("chat_template_kwargs")
    if extra is not None:
        if not isinstance(extra, dict) or not all(
            isinstance(k, str) and isinstance(v, str | int | float | bool) for k, v in extra.items()
        ):
            raise BadRequestError(
                "chat_template_kwargs must map names to plain values (text, numbers, true or false)",
                "chat_template_kwargs",
            )
        args.update(extra)
    effort = body.get("reasoning_effort")
    if effort is not None:
        if not isinstance(effort, str) or len(effort) > 32:
            raise BadRequestError("reasoning_effort must be a short string", "reasoning_effort")
        args["reasoning_effort"] = effort
    thinking = args.pop("enable_thinking", None)
    if thinking is not None and not isinstance(thinking, bool):
        raise BadRequestError("chat_template_kwargs.enable_thinking must be true or false", "chat_template_kwargs")
    return args, False if effort == "none" and thinking is None else thinking


def parse_completion(body: Any, request_id: str, *, chat: bool, n_ctx: int) -> CompletionRequest:
    """Checks a request body (already parsed from JSON) for /v1/chat/completions or /v1/completions.

    Raises `BadRequestError`. `n_ctx` bounds max_tokens: more can never be produced.
    """
    if not isinstance(body, dict):
        raise BadRequestError("the request body must be a JSON object")
    for key in body:
        if key in _UNSUPPORTED and body[key] not in (None, [], {}, False, "none", "auto"):
            raise BadRequestError(f"{key} is not supported here", key)
        if key not in _READ and key not in _HARMLESS and key not in _UNSUPPORTED:
            raise BadRequestError(f"unrecognized request argument: {key[:80]}", key[:80])
    if body.get("n") not in (None, 1) or body.get("n") is True:
        raise BadRequestError("n must be 1: send the request again for another answer", "n")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequestError("model must be a string", "model")
    max_tokens = _integer(body, "max_completion_tokens", 1, n_ctx)
    if max_tokens is None:
        max_tokens = _integer(body, "max_tokens", 1, n_ctx)
    numbers = {k: v for k, (low, high) in _SAMPLING.items() if (v := _number(body, k, low, high)) is not None}
    top_k = _integer(body, "top_k", 0, 1_000_000)
    grammar = body.get("grammar")
    if grammar is not None and (not isinstance(grammar, str) or len(grammar) > MAX_SCHEMA_BYTES):
        raise BadRequestError(f"grammar must be GBNF text of at most {MAX_SCHEMA_BYTES // 1024} KiB", "grammar")
    schema = _schema(body.get("response_format"))
    if grammar and schema:
        raise BadRequestError("give either grammar or response_format, not both", "grammar")
    defaults = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)  # what OpenAI's clients expect
    sampling = msgspec.structs.replace(
        defaults,
        **numbers,
        seed=_integer(body, "seed", -(2**63), 2**63 - 1),
        stop=_stops(body.get("stop")),
        max_tokens=max_tokens,
        grammar=grammar,
        json_schema=schema,
        **({"top_k": top_k} if top_k is not None else {}),
    )
    args, thinking = _template_args(body)
    tools = parse_tools(body.get("tools")) if chat else ()
    tool_choice, forced = parse_tool_choice(body.get("tool_choice"), tools)
    parallel = body.get("parallel_tool_calls")
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    tokens: tuple[int, ...] | None = None
    if chat:
        messages = parse_messages(body.get("messages"))
    else:
        value = body.get("prompt")
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            value = value[0]
        if isinstance(value, list) and value and all(isinstance(t, int) and not isinstance(t, bool) for t in value):
            tokens = tuple(value)
        elif isinstance(value, str):
            prompt = value
        else:
            raise BadRequestError("prompt must be one string or one list of token ids", "prompt")
    options = body.get("stream_options")
    return CompletionRequest(
        generate=GenerateRequest(
            id=request_id,
            messages=messages,
            prompt=prompt,
            tokens=tokens,
            sampling=sampling,
            enable_thinking=thinking,
            template_args=args,
            tools=tools,
            tool_choice=tool_choice,
            forced_tool=forced,
            parallel_tool_calls=parallel is not False,
        ),
        stream=_boolean(body, "stream"),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        model=model,
    )
