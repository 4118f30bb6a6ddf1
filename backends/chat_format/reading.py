"""What every part of a parser shares about the answer that it reads."""

from __future__ import annotations

from typing import Literal

from backends.chat_format.events import Out
from backends.chat_format.format import ChatFormat
from backends.chat_format.source import Source
from backends.chat_format.values import Tools

Phase = Literal["boundary", "thinking", "answer", "call"]
"""Where an answer stands: before its first text, in thinking, in its text, in a tool call."""


class Reading:
    """One answer that is being read."""

    def __init__(self, fmt: ChatFormat, tools: Tools, after: str) -> None:
        self.fmt, self.tools, self.after = fmt, tools, after
        self.src = Source()
        self.out = Out()
        self.phase: Phase = "boundary"
        self.truncated = False
        """Whether the text was cut off: known at its end only."""
