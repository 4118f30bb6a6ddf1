"""What a request says: messages, tools, and how tokens are drawn. See `backends.interface`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field


class ToolCall(Struct, frozen=True):
    """A call of a tool that an assistant's message made. `arguments` is JSON text, as in the OpenAI API."""

    id: str
    name: str
    arguments: str = "{}"


class ToolSpec(Struct, frozen=True):
    """A tool that the model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool = False
    """Its arguments must match the schema: a request whose schema can't be held is refused, where otherwise any object
    will do. Either way they are constrained once a call has begun, in all formats but a few (`forcing.begun_calls`)."""


class ChatMessage(Struct, frozen=True):
    """One message of a chat. `thinking` is the reasoning that came before an assistant's `content`.

    An assistant that called tools has `tool_calls`; each result is a message of role ``tool`` with the call's id in
    `tool_call_id`, the tool's name in `name`, and what it gave in `content`. Results follow the calls in order.
    """

    role: str
    content: str
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    tokens: tuple[int, ...] = ()
    """The ids that were sampled for this answer (`Finished.tokens`): where they still say what the message says, the
    prompt holds them as they were, so that the KV cache agrees. Empty: the message is rendered and tokenised."""


class Sampling(Struct, kw_only=True, frozen=True):
    """Sampler settings; the defaults are the app's preset `default`. temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None draws a fresh seed, which `Finished` reports."""
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    """None: until the model ends or the context is full."""
    grammar: str | None = None
    """GBNF that the answer (not the thinking) must match."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, and what is added to their logits."""
    logprobs: int | None = None
    """How many of the likeliest tokens are told beside each that was sampled; None: nothing is told."""
    prompt_logprobs: bool = False
    """The same is told of the prompt's tokens, which are all computed for it."""
    json_schema: str | None = None
    """A JSON schema (as text) that the answer must match: the backend turns it into a grammar."""
