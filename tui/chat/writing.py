"""One answer that is being written: into its turn on the screen, and on its way to the disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backends.interface import EngineError, ModelInfo
from flashmoe.history.records import Figures, HistoryError
from tui.chat.conversation import Conversation, Turn
from tui.chat.view import FlowView
from tui.engine.answer import Answer

if TYPE_CHECKING:
    from flashmoe.history import AnswerWriter

_ENDINGS = {"engine_died": "died", "cancelled": "cancelled"}


class Writing:
    """An answer from its first piece to its figures."""

    def __init__(self, answer_id: str, conversation: Conversation, turn: Turn, writer: AnswerWriter) -> None:
        """`conversation` is the chat that it belongs to, shown or not."""
        self.id = answer_id
        self.conversation = conversation
        self.turn = turn
        self._writer = writer
        self.tokens = 0
        """Of the context, with what was written so far."""
        self._thinking_since: float | None = None
        self._thinking_s: float | None = None

    def add(self, pieces: list[tuple[str, str]]) -> None:
        """Notes (kind, text) in the turn and on the way to the disk."""
        for kind, text in pieces:
            thinking = kind == "thinking"
            if thinking:
                self.turn.thinking += text
                self._thinking_since = self._thinking_since or time.monotonic()
            else:
                self.turn.content += text
                self._end_thinking()
            self._writer.add(text, thinking=thinking)

    def _end_thinking(self) -> None:
        if self._thinking_since is not None:
            self._thinking_s = time.monotonic() - self._thinking_since
            self._thinking_since = None

    async def finish(self, answer: Answer, model: ModelInfo | None, view: FlowView) -> None:
        """The answer ended: how and with which figures, and the rest of the text to the disk."""
        turn = self.turn
        self._end_thinking()
        figures: Figures | None = None
        if answer.finished is not None:
            turn.ending = answer.finished.reason
            figures = Figures.from_usage(
                answer.finished.usage,
                backend=model.backend if model is not None else None,
                thinking_s=self._thinking_s,
            )
        else:
            error = answer.error or EngineError("internal", "The engine ended the answer without saying why.")
            turn.ending = _ENDINGS.get(error.code, "error")
            turn.error = "" if error.code == "cancelled" else error.message
        turn.figures = figures
        history = await view.history()
        try:
            turn.figures = (await history.in_thread(self._writer.finish, turn.ending, figures)).figures
        except HistoryError as problem:
            view.say(problem.message, "error")
