"""Thinking in the text of a server that doesn't keep it apart: an answer that begins with ``<think>``.

Only what the model wrote first counts: a tag later in the text, or one that a question asks about, is text.
"""

from __future__ import annotations

from typing import Literal

OPENING, CLOSING = "<think>", "</think>"

Piece = tuple[Literal["thinking", "answer"], str]


class ThinkTag:
    """Cuts a stream of text at the tags, which may come in pieces."""

    def __init__(self) -> None:
        self._state: Literal["start", "thinking", "behind", "answer"] = "start"
        self._held = ""
        self._thought = False
        """Whether some of the thinking was given out."""

    def feed(self, text: str) -> list[Piece]:
        """What can be told of it now."""
        if self._state == "answer":
            return [("answer", text)]
        self._held += text
        return self._cut()

    def end(self) -> list[Piece]:
        """What was held back when the stream ended."""
        held, self._held = self._held, ""
        return [("thinking" if self._state == "thinking" else "answer", held)] if held else []

    def _cut(self) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(OPENING):
                self._state, self._held = "thinking", begun[len(OPENING) :]
            elif OPENING.startswith(begun):
                return []  # nothing yet but what may become the tag
            else:
                self._state = "answer"
        if self._state == "thinking":
            if not self._thought:
                self._held = self._held.lstrip("\n")
            thought, found, rest = self._held.partition(CLOSING)
            if found:
                pieces += [("thinking", thought.rstrip("\n"))] if thought.rstrip("\n") else []
                self._state, self._held = "behind", rest
            else:
                keep = next((n for n in range(len(CLOSING) - 1, 0, -1) if thought.endswith(CLOSING[:n])), 0)
                blank = len(thought) - keep - len(thought[: len(thought) - keep].rstrip("\n"))
                cut = len(thought) - keep - blank
                self._held, self._thought = thought[cut:], self._thought or cut > 0
                return [("thinking", thought[:cut])] if cut else []
        if self._state == "behind":  # the free line between thinking and answer belongs to neither
            self._held = self._held.lstrip("\n")
            if not self._held:
                return pieces
            self._state = "answer"
        text, self._held = self._held, ""
        return [*pieces, ("answer", text)] if text else pieces
