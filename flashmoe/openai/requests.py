"""OpenAI's chat and text completion requests, read into `GenerateRequest`: for `serve` and for OpenAI's batch lines.

Requests come from anywhere: the structs bound every field. What changes the answer and can't be done is refused by
name, what is harmless is taken, what is unknown is refused as OpenAI's own server does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from backends.interface import GenerateRequest, Sampling
from flashmoe.openai import fields as f
from flashmoe.openai.fields import BadRequestError as BadRequestError
from flashmoe.openai.fields import read
from flashmoe.openai.messages import Message, Tool, ToolChoice, messages_of, tools_of

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Scalar = str | int | float | bool
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]
MAX_PROMPTS = 128
MAX_BIASES = 1024


class StreamOptions(Struct):
    include_usage: bool | None = None


class NamedSchema(Struct):
    schema: dict[str, Any] | bool
    name: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """`json_object` may have a schema beside it, as llama.cpp's server takes it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | bool | None = None


class _Common(Struct, kw_only=True):
    """Fields of chat and text completions alike."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: f.MaxTokens | None = None
    temperature: f.Temperature | None = None
    top_p: f.Share | None = None
    min_p: f.Share | None = None
    top_k: f.TopK | None = None
    repeat_penalty: f.RepeatPenalty | None = None
    repetition_penalty: f.RepeatPenalty | None = None
    """Another name of `repeat_penalty`."""
    presence_penalty: f.Penalty | None = None
    frequency_penalty: f.Penalty | None = None
    seed: f.Seed | None = None
    stop: str | list[f.Stop] | None = None
    n: f.Count | None = None
    logit_bias: dict[str, Bias] | None = None
    """Token ids, as text, to what is added to their logits."""
    grammar: str | None = None
    """GBNF that the answer must match."""
    response_format: ResponseFormat | None = None

    # taken, and without effect here
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    cache_prompt: Any = None
    best_of: Literal[1] | None = None
    typical_p: Literal[1] | None = None
    mirostat: Literal[0] | None = None


HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "cache_prompt", "best_of", "typical_p", "mirostat", "verbosity", "modalities", "web_search_options",
        "prediction", "audio", "suffix", "provider", "transforms", "usage", "think", "options", "keep_alive",
    }
)  # fmt: skip
"""Fields that are taken and have no effect."""


class ChatRequest(_Common, kw_only=True, forbid_unknown_fields=True):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(max_length=f.MAX_MESSAGES)]
    max_completion_tokens: f.MaxTokens | None = None
    tools: Annotated[list[Tool], Meta(max_length=f.MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: f.TopLogprobs | None = None
    reasoning_effort: Effort | None = None
    chat_template_kwargs: dict[str, Scalar] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    verbosity: Any = None
    modalities: list[Literal["text"]] | None = None
    prediction: Any = None
    audio: None = None
    web_search_options: None = None
    functions: Annotated[list[Any], Meta(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    provider: Any = None
    transforms: Any = None
    usage: Any = None
    think: Any = None
    options: Any = None
    keep_alive: Any = None


Tokens = Annotated[list[int], Meta(max_length=1 << 20)]


class TextRequest(_Common, kw_only=True, forbid_unknown_fields=True):
    """The body of ``/v1/completions``."""

    prompt: str | list[Any]
    """One prompt or several, each as text or as token ids."""
    echo: bool | None = None
    logprobs: f.TopLogprobs | None = None
    suffix: Literal[""] | None = None


class CompletionRequest(Struct, frozen=True, kw_only=True):
    """A checked request: what to generate, and how the caller wants it back."""

    generate: tuple[GenerateRequest, ...]
    """One for each answer: `n` for each prompt, in order."""
    stream: bool = False
    include_usage: bool = False
    model: str | None = None
    echo: bool = False
    top_logprobs: int | None = None
    """How many of the likeliest tokens are told beside each; None: nothing is told of tokens."""
    nothing: bool = False
    """Only the prompt's own tokens are asked about."""


def _sampling(given: _Common, max_tokens: int | None, limited_by: str = "max_tokens", **more: Any) -> Sampling:
    top_k = given.top_k
    penalty = given.repeat_penalty if given.repeat_penalty is not None else given.repetition_penalty
    numbers = {
        "temperature": given.temperature, "top_p": given.top_p, "min_p": given.min_p, "repeat_penalty": penalty,
        "presence_penalty": given.presence_penalty, "frequency_penalty": given.frequency_penalty,
        "top_k": None if top_k is None else max(0, top_k),
    }  # fmt: skip
    schema = _schema(given.response_format)
    if given.grammar and schema:
        raise BadRequestError("give either grammar or response_format, not both", "grammar")
    if given.grammar is not None and len(given.grammar) > f.MAX_SCHEMA_BYTES:
        raise BadRequestError(f"the grammar is larger than {f.MAX_SCHEMA_BYTES // 1024} KiB", "grammar")
    return msgspec.structs.replace(
        f.DEFAULTS,
        **{name: value for name, value in numbers.items() if value is not None},
        seed=f.seed_of(given.seed),
        stop=f.stops_of(given.stop),
        max_tokens=f.tokens_of(max_tokens, limited_by),
        grammar=given.grammar or None,
        json_schema=schema,
        logit_bias=_biases(given.logit_bias),
        **more,
    )


def _biases(given: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    if not given:
        return ()
    if len(given) > MAX_BIASES:
        raise BadRequestError(f"logit_bias has {len(given)} tokens, at most {MAX_BIASES} are taken", "logit_bias")
    try:
        return tuple((int(token), bias) for token, bias in given.items())
    except ValueError:
        raise BadRequestError("logit_bias maps token ids to numbers", "logit_bias") from None


def _schema(given: ResponseFormat | None) -> str | None:
    """`response_format` as a JSON schema text, None for free text."""
    if given is None or given.type == "text":
        return None
    if given.type == "json_schema":
        if given.json_schema is None:
            raise BadRequestError("response_format.json_schema.schema must be an object", "response_format")
        return f.schema_text(given.json_schema.schema, "response_format")
    if given.schema is not None:
        return f.schema_text(given.schema, "response_format")
    return '{"type": "object"}'


def _several(first: GenerateRequest, n: int | None) -> tuple[GenerateRequest, ...]:
    """`n` requests of one prompt: it is read once, and each answer is drawn by itself."""
    if n is None or n == 1:
        return (first,)
    seed = first.sampling.seed
    return tuple(
        msgspec.structs.replace(
            first,
            id=f"{first.id}-{i}",
            sampling=msgspec.structs.replace(first.sampling, seed=None if seed is None else seed + i),
        )
        for i in range(n)
    )


def parse_chat(body: Any, request_id: str) -> CompletionRequest:
    """Checks a body for ``/v1/chat/completions``. Raises `BadRequestError`."""
    given = read(body, ChatRequest)
    messages = messages_of(given.messages)
    tools = tools_of(given.tools, given.tool_choice)
    args: dict[str, Scalar] = dict(given.chat_template_kwargs or {})
    thinking = args.pop("enable_thinking", None)
    if thinking is not None and not isinstance(thinking, bool):
        raise BadRequestError("chat_template_kwargs.enable_thinking must be true or false", "chat_template_kwargs")
    effort, thinking = effort_of(given.reasoning_effort, thinking)
    limit, limited_by = given.max_completion_tokens, "max_completion_tokens"
    if limit is None:
        limit, limited_by = given.max_tokens, "max_tokens"
    if given.top_logprobs is not None and not given.logprobs:
        raise BadRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    top = (given.top_logprobs or 0) if given.logprobs else None
    last = messages[-1]
    goes_on = last.role == "assistant" and not last.tool_calls and given.continue_final_message is not False
    if given.add_generation_prompt:
        goes_on = False
    generate = GenerateRequest(
        id=request_id,
        messages=messages,
        sampling=_sampling(given, limit, limited_by, logprobs=top),
        enable_thinking=thinking,
        effort=effort,
        tools=tools.specs,
        tool_choice=tools.choice,
        forced_tool=tools.forced,
        parallel_tool_calls=given.parallel_tool_calls is not False,
        continue_final=goes_on,
        template_args=args,
    )
    return CompletionRequest(
        generate=_several(generate, given.n),
        stream=bool(given.stream),
        include_usage=bool(given.stream_options and given.stream_options.include_usage),
        model=given.model,
        top_logprobs=top,
    )


def effort_of(
    effort: Effort | None, thinking: bool | None
) -> tuple[Literal["low", "medium", "high"] | None, bool | None]:
    """An effort as templates know it, and the switch that it means where none was set."""
    match effort:
        case None:
            return None, thinking
        case "none":
            return None, False if thinking is None else thinking
        case "minimal" | "low":
            return "low", thinking
        case "medium":
            return "medium", thinking
        case _:
            return "high", thinking


def parse_text(body: Any, request_id: str) -> CompletionRequest:
    """Checks a body for ``/v1/completions``. Raises `BadRequestError`."""
    given = read(body, TextRequest)
    prompts = _prompts(given.prompt)
    echo = bool(given.echo)
    limit = given.max_tokens
    nothing = limit == 0 and echo  # some evaluators ask for nothing but what the prompt's own tokens were worth
    sampling = _sampling(
        given, 1 if nothing else limit, logprobs=given.logprobs, prompt_logprobs=echo and given.logprobs is not None
    )
    if limit is None:
        sampling = msgspec.structs.replace(sampling, max_tokens=16)  # as OpenAI's endpoint does
    requests: list[GenerateRequest] = []
    for i, prompt in enumerate(prompts):
        one = GenerateRequest(
            id=f"{request_id}-p{i}" if len(prompts) > 1 else request_id,
            prompt=prompt if isinstance(prompt, str) else None,
            tokens=None if isinstance(prompt, str) else prompt,
            sampling=sampling,
        )
        requests += _several(one, given.n)
    return CompletionRequest(
        generate=tuple(requests),
        stream=bool(given.stream),
        include_usage=bool(given.stream_options and given.stream_options.include_usage),
        model=given.model,
        echo=echo,
        top_logprobs=given.logprobs,
        nothing=nothing,
    )


def _prompts(value: str | list[Any]) -> list[str | tuple[int, ...]]:
    if isinstance(value, str):
        return [value]
    if value and all(type(token) is int for token in value):
        return [tuple(value)]
    if not value or len(value) > MAX_PROMPTS:
        raise BadRequestError(f"prompt must hold 1 to {MAX_PROMPTS} prompts", "prompt")
    prompts: list[str | tuple[int, ...]] = []
    for one in value:
        if isinstance(one, str):
            prompts.append(one)
        elif isinstance(one, list) and one and all(type(token) is int for token in one):
            prompts.append(tuple(one))
        else:
            raise BadRequestError("prompt must be text or token ids, or a list of such", "prompt")
    return prompts


def parse_one(body: Any, request_id: str, *, chat: bool) -> GenerateRequest:
    """Checks a body that must ask for one answer alone: a line of a batch. Raises `BadRequestError`."""
    parsed = (parse_chat if chat else parse_text)(body, request_id)
    if len(parsed.generate) != 1:
        raise BadRequestError("a line gives one answer: write several lines for several", "n")
    return parsed.generate[0]
