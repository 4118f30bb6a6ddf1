"""Requests to ``/tokenize`` and ``/detokenize``, as llama.cpp's and vLLM's servers take them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from backends.interface import GenerateRequest
from flashmoe.openai.fields import MAX_MESSAGES, BadRequestError
from flashmoe.openai.messages import Message, messages_of


class TokenizeRequest(Struct, kw_only=True):
    """A text (`content` or `prompt`), or `messages`, which go through the chat template."""

    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(max_length=MAX_MESSAGES)] | None = None
    add_special: bool | None = None
    """Whether the token that the model wants at the beginning is among them."""
    add_special_tokens: bool | None = None
    """Another name of `add_special`."""

    @property
    def adds_special(self) -> bool:
        return self.add_special is not False and self.add_special_tokens is not False


class DetokenizeRequest(Struct, kw_only=True):
    """Token ids."""

    tokens: Annotated[list[int], Meta(max_length=1 << 20)]


def tokenize_request(given: TokenizeRequest) -> GenerateRequest:
    """What the engine is asked. Raises `BadRequestError`."""
    texts = [text for text in (given.content, given.prompt) if text is not None]
    if len(texts) + (given.messages is not None) != 1:
        raise BadRequestError("give content, prompt or messages: one of them", "content")
    if given.messages is not None:
        return GenerateRequest(id="tokenize", messages=messages_of(given.messages))
    return GenerateRequest(id="tokenize", prompt=texts[0])
