"""What every part of a parser shares about the answer that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.chat_format.events import Out
from backends.chat_format.format import ChatFormat
from backends.chat_format.source import Source
from backends.chat_format.values import Tools

Phase = Literal["boundary", "thinking", "answer", "call"]
"""Where an answer stands: before its first text, in thinking, in its text, in a tool call."""


@dataclass(frozen=True)
class CallStart:
    """A place where a tool call begins, or may begin."""

    at: int
    """In all the text of the answer."""
    sure: bool
    """Nothing else can stand here; where it is False, it is a call once its name was given on."""
    name: str = ""
    """The tool, where the head of a message named it and only the arguments follow."""


class Reading:
    """One answer that is being read."""

    def __init__(self, fmt: ChatFormat, tools: Tools, after: str) -> None:
        self.fmt, self.tools, self.after = fmt, tools, after
        self.src = Source()
        self.out = Out()
        self.phase: Phase = "boundary"
        self.call: CallStart | None = None
        """The call that is being read."""
        self.truncated = False
        """Whether the text was cut off: known at its end only."""
