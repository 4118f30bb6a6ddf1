"""Chats in SQLite: every chat, message, branch and figure; see `History`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashmoe.history.records import (
    Attachment,
    Chat,
    ChatSettings,
    ContextCut,
    Figures,
    HistoryError,
    Hit,
    Message,
)

if TYPE_CHECKING:
    from flashmoe.history.store import History
    from flashmoe.history.writer import AnswerWriter

__all__ = [
    "AnswerWriter",
    "Attachment",
    "Chat",
    "ChatSettings",
    "ContextCut",
    "Figures",
    "History",
    "HistoryError",
    "Hit",
    "Message",
]


def __getattr__(name: str) -> Any:
    """The database's own modules when they are first used: the app's first paint needs only the records (10 ms)."""
    if name == "History":
        from flashmoe.history.store import History

        return History
    if name == "AnswerWriter":
        from flashmoe.history.writer import AnswerWriter

        return AnswerWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
