"""Tool calls that a model began by itself, held to their tools' schemas from there on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from backends.chat_format.constraint import Constraint, Matcher
from backends.chat_format.parser import Parser
from backends.interface import EngineError


class HeldCalls:
    """Watches one answer for the beginning of a call. What was written of it by then is taken in first: where that is
    none of the request's tools, or written in another way than the template shows, the call is free."""

    def __init__(self, tokenizer: Any, constraints: Mapping[str, Constraint]) -> None:
        """`constraints`: see `forcing.begun_calls`. Raises `EngineError` ``bad_request``."""
        self._tokenizer = tokenizer
        self._constraints = constraints
        self._first = Matcher(tokenizer, constraints[""]) if "" in constraints else None
        self._texts: list[tuple[str, int | None]] = []
        self._places: list[int] = []
        self._length = 0
        self._looked_at = -1

    def saw(self, text: str, special: int | None = None) -> None:
        """Some text of the answer, before the parser gets it; `special`: the token whose own text it is."""
        self._texts.append((text, special))
        self._places.append(self._length)
        self._length += len(text)

    def begun(self, parser: Parser) -> Matcher | None:
        """What holds the call that has begun with the last text; None: none has, or it can't be held."""
        start = parser.call_begun
        if start is None or start.at == self._looked_at:
            return None
        self._looked_at = start.at
        matcher = self._matcher(start.name)
        if matcher is None or not matcher.take(self._written_from(start.at)):
            return None
        return None if matcher.accepting else matcher

    def _matcher(self, name: str) -> Matcher | None:
        if self._first is not None:
            return self._first.copy()
        constraint = self._constraints.get(name)
        try:
            return Matcher(self._tokenizer, constraint) if constraint is not None else None
        except EngineError:
            return None

    def _written_from(self, place: int) -> list[int]:
        """The answer from a place on, as tokens: special ones as they were drawn, the rest cut in any way."""
        first = bisect_left(self._places, place + 1) - 1
        tokens: list[int] = []
        for at, (text, special) in zip(self._places[first:], self._texts[first:], strict=True):
            text = text[max(0, place - at) :]
            if special is not None:
                tokens.append(special)
            elif text:
                tokens += self._tokenizer.greedy_tokenize(text)
        return tokens
