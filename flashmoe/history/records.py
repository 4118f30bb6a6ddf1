"""What the history holds, as typed structs. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from backends.errors import ReportedError
from backends.interface import ChatMessage, Sampling, Usage

LATEST = 253_402_300_799.0
"""The last second of the year 9999: a later time is no time."""

Status = Literal["done", "partial", "streaming"]
"""An answer is `streaming` while it is written; `partial` where it was stopped or its process died."""


class ChatSettings(Struct, kw_only=True, frozen=True):
    """What a chat was told to do differently. Empty and None mean: as the configuration says."""

    system_prompt: str = ""
    preset: str = "auto"
    sampling: Sampling | None = None
    """Sampler settings of the chat's own; they win over the preset."""
    thinking: bool | None = None
    n_ctx: int | None = None
    """Tokens of a larger context that was chosen when the usual one was full."""
    n_ctx_model: str = ""
    """File name of the model that `n_ctx` was chosen for: another one takes another amount of memory for it."""


class Figures(Struct, kw_only=True, frozen=True):
    """What one answer took; None where the backend couldn't know."""

    prompt_tokens: int | None = None
    reused_tokens: int | None = None
    completion_tokens: int | None = None
    thinking_tokens: int | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    tok_s: float | None = None
    """Decoded tokens a second."""
    hit_rate: float | None = None
    read_bytes: int | None = None
    stall_s: float | None = None
    seed: int | None = None
    backend: str | None = None
    thinking_s: float | None = None

    @classmethod
    def from_usage(cls, usage: Usage, *, backend: str | None = None, thinking_s: float | None = None) -> Figures:
        """The figures of a finished answer."""
        decoded = usage.completion_tokens
        return cls(
            prompt_tokens=usage.prompt_tokens,
            reused_tokens=usage.reused_tokens,
            completion_tokens=decoded,
            thinking_tokens=usage.thinking_tokens,
            prefill_s=usage.prefill_s,
            decode_s=usage.decode_s,
            tok_s=decoded / usage.decode_s if usage.decode_s > 0 and decoded else None,
            hit_rate=usage.hit_rate,
            read_bytes=usage.read_bytes,
            stall_s=usage.stall_s,
            seed=usage.seed,
            backend=backend,
            thinking_s=thinking_s,
        )

    def plus(self, other: Figures) -> Figures:
        """The figures of an answer that was continued: counts and seconds add up, the rest is the newer's."""

        def add(name: str) -> float | None:
            parts = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            return sum(parts) if parts else None

        summed = {n: add(n) for n in ("completion_tokens", "thinking_tokens", "prefill_s", "decode_s", "read_bytes",
                                      "stall_s", "thinking_s")}  # fmt: skip
        tokens, seconds = summed["completion_tokens"], summed["decode_s"]
        tok_s = tokens / seconds if tokens and seconds else other.tok_s
        return msgspec.convert({**msgspec.to_builtins(other), **summed, "tok_s": tok_s}, Figures)


class Attachment(Struct, frozen=True):
    """A text file that was sent with a message."""

    name: str
    text: str


class Chat(Struct, kw_only=True, frozen=True):
    """A chat without its messages."""

    id: int
    uid: str
    """Stays the same through export and import."""
    title: str
    created: float
    updated: float
    pinned: bool = False
    deleted: float | None = None
    """When it was deleted; it can be brought back until the trash is emptied."""
    model: str = ""
    model_path: str = ""
    settings: ChatSettings = ChatSettings()
    draft: str = ""
    """What stands in the composer and was not sent."""
    leaf: int | None = None
    """The last message of the branch that is shown; None for an empty chat."""
    messages: int = 0


class Message(Struct, kw_only=True, frozen=True):
    """One message. Messages form a tree: several children of one parent are variants of one place."""

    id: int
    chat_id: int
    parent_id: int | None
    role: str
    content: str
    thinking: str = ""
    created: float = 0.0
    status: Status = "done"
    finish_reason: str = ""
    """As in `backends.interface.Finished`; ``died`` where the engine did; empty for questions."""
    model: str = ""
    figures: Figures | None = None
    attachments: tuple[Attachment, ...] = ()
    variant: int = 1
    """Which of `variants` this is, from 1, in the order they were made."""
    variants: int = 1

    @property
    def prompt_text(self) -> str:
        """What the model is given: the attachments, each below its name, then the content."""
        files = [f"File {a.name}:\n```\n{a.text}\n```\n\n" for a in self.attachments]
        return "".join(files) + self.content

    def to_chat_message(self) -> ChatMessage:
        """The message as a request holds it."""
        return ChatMessage(self.role, self.prompt_text, self.thinking)


class ContextCut(Struct, frozen=True):
    """What the model isn't shown any more: the messages from the top of a path to `upto_id`."""

    id: int
    message_id: int
    """It holds for the paths that go through this message."""
    upto_id: int
    """The last message that is left out: `message_id` or one of its ancestors."""
    summary: str = ""
    """Stands in for what is left out; empty where nothing does."""
    model: str = ""
    """The model that wrote the summary."""
    created: float = 0.0


class Hit(Struct, frozen=True, kw_only=True):
    """A chat that matches a search."""

    chat: Chat
    message_id: int | None = None
    """The newest message that matches; None where only the title does."""
    snippet: str = ""
    """Text around the match, one line."""
    spans: tuple[tuple[int, int], ...] = ()
    """Start and end of each matching word in `snippet`."""


class HistoryError(ReportedError):
    """The history can't do what it was asked."""

    def __init__(self, what: str, advice: str = "", *, retry: bool = False) -> None:
        super().__init__("history", what, advice)
        self.exit_code = 3 if retry else 1
