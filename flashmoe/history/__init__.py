"""Chats in SQLite: every chat, message, branch and figure; see `History`."""

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
