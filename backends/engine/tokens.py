"""Tokens of the loaded model, asked of its engine."""

from __future__ import annotations

from backends.engine import protocol as p
from backends.engine.client import EngineClient
from backends.interface import GenerateRequest


async def tokenize(client: EngineClient, request: GenerateRequest, *, special: bool = True) -> tuple[int, ...]:
    """The token ids of a request's prompt; `special` False leaves out what the model wants before a raw one. Raises
    `EngineError`."""
    told = await client.ask(p.Tokenize(client.new_id(), request, special))
    return told.tokens if isinstance(told, p.Tokens) else ()


async def detokenize(client: EngineClient, tokens: tuple[int, ...]) -> str:
    """The text of token ids. Raises `EngineError`."""
    told = await client.ask(p.Detokenize(client.new_id(), tokens))
    return told.text if isinstance(told, p.Text) else ""
