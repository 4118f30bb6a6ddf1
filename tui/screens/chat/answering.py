"""An answer that comes: its text, how far and how fast, and how it ended."""

from __future__ import annotations

import time

from flashmoe.text_safety import visible_line
from tui.chat.conversation import Conversation, Turn
from tui.engine.answer import Answer
from tui.engine.messages import AnswerNews
from tui.screens.chat.parts import ChatParts
from tui.widgets.transcript.message_view import AnswerView

_FIGURES_S = 1.0


class Answering:
    """Takes what has come of an answer and shows it."""

    def __init__(self, parts: ChatParts) -> None:
        self._parts = parts
        self._figures_at = 0.0
        self._figures_of = ""
        self._told_problem: str | None = None

    async def take(self, news: AnswerNews) -> None:
        """Shows what has come since the last news; the next news comes when this is on the screen."""
        flow = self._parts.flow
        taken = flow.take(news.answer_id)
        if taken is None:
            return
        answer, pieces, last = taken
        turn, shown, writing = flow.turn, flow.writes_here, flow.writing_chat
        view = self._parts.transcript.view(turn) if turn is not None else None
        if pieces and isinstance(view, AnswerView):
            await view.feed(pieces)
        self._show_progress(answer, shown)
        if last:  # not `answer.ended`: it may have ended while these pieces were drawn, with more text to take
            await flow.finish(answer)
            if isinstance(view, AnswerView):
                await view.end()
            if shown:
                self._show_end(turn)
            else:
                self._show_end_elsewhere(turn, writing)
            return
        self._parts.call_after_refresh(self._parts.host.controller.taken, answer)

    def _show_progress(self, answer: Answer, shown: bool) -> None:
        parts, now = self._parts, time.monotonic()
        stop, turn = parts.key("chat.stop"), parts.flow.turn
        if answer.first_token is None:
            if answer.prefill is not None and shown:
                parts.activity.show_prefill(answer.prefill, now, stop)
            return
        if self._figures_of == answer.id and now - self._figures_at < _FIGURES_S:
            return  # figures that change with every token can't be read, and cost a repaint each
        self._figures_of, self._figures_at = answer.id, now
        self._tell_problem()
        parts.title_bar.show_rate(answer.rate())
        if not shown:
            return
        parts.title_bar.show_context(parts.flow.ctx_used)
        thinking = bool(turn is not None and turn.thinking and not turn.content)
        parts.activity.show_answering(answer.n_tokens, now - answer.first_token, stop, thinking)

    def _tell_problem(self) -> None:
        """Says once that the answer can't be written to the disk, while it can't."""
        problem = self._parts.archive.problem
        if problem and problem != self._told_problem:
            said = f"{problem} Until then the answer is only in memory."
            self._parts.host.notify(said, severity="warning", markup=False)
        self._told_problem = problem

    def _show_end_elsewhere(self, turn: Turn | None, chat: Conversation | None) -> None:
        """The answer of a chat that isn't shown ended."""
        self._parts.title_bar.show_rate(None)
        if turn is not None and chat is not None:
            how = "has an answer" if turn.ending in ("stop", "length") else "has an answer that broke off"
            title = visible_line(chat.title or "Untitled", 40)
            self._parts.say(f"“{title}” {how}; {self._parts.key('chat.chats')} opens it.")

    def _show_end(self, turn: Turn | None) -> None:
        parts, key = self._parts, self._parts.key
        parts.title_bar.show_context(parts.flow.ctx_used)
        parts.title_bar.show_rate(turn.figures.tok_s if turn is not None and turn.figures is not None else None)
        if turn is None:
            return
        view = parts.transcript.view(turn)
        if isinstance(view, AnswerView):
            view.refresh_turn()
        model = parts.host.controller.model
        continues = model is None or model.backend != "remote"  # a server begins anew
        if turn.ending == "cancelled":
            goes_on = f"{key('chat.continue')} continues, " if turn.content and continues else ""
            parts.say(f"Stopped. {goes_on}{key('chat.regenerate')} regenerates.")
        elif turn.ending == "died":
            again = key("chat.continue") if turn.content else key("chat.regenerate")
            parts.say(f"{turn.error} The next question starts it again; {again} continues this answer.", "error")
        elif turn.ending == "error":  # why stands below the answer
            goes_on = f"{key('chat.continue')} continues it, " if turn.content and continues else ""
            parts.say(f"The answer failed. {goes_on}{key('chat.regenerate')} tries again.", "error")
        elif turn.ending == "length":
            goes_on = f"; {key('chat.continue')} continues" if continues else ""
            parts.say(f"Cut at the length limit{goes_on}.")
        elif turn.ending != "context":
            parts.activity.done()
