"""The main screen as the chat's flow sees it (`FlowView`)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from backends.interface import PrefillProgress
from tui.chat.conversation import Turn
from tui.chat.view import ContextChoice, FullContext
from tui.screens.chat.parts import ChatParts
from tui.screens.chat.welcoming import show_welcome
from tui.widgets.transcript.message_view import AnswerView, QuestionView

if TYPE_CHECKING:
    from flashmoe.history import History


class ChatView:
    """Shows what the flow decides."""

    def __init__(self, parts: ChatParts, busy_changed: Callable[[], None]) -> None:
        self._parts = parts
        self._busy_changed = busy_changed

    async def history(self) -> History:
        """The history."""
        return await self._parts.archive.history()

    def say(self, sentence: str, level: str = "info") -> None:
        """One sentence that stays in sight."""
        self._parts.say(sentence, level)

    def key(self, binding_id: str) -> str:
        """The key in force for an action."""
        return self._parts.key(binding_id)

    def busy_changed(self) -> None:
        """An answer began or ended."""
        self._busy_changed()
        if self._parts.is_mounted and self._parts.key_bar is not None:
            self._parts.title_bar.show_writing(_elsewhere(self._parts))

    def queue_changed(self) -> None:
        """Other questions wait in the shown chat."""
        parts = self._parts
        texts = [item.text for item in parts.flow.queue.of(parts.flow.conversation)]
        parts.queue.show(texts, parts.key("composer.history_prev"))
        parts.composer.has_queued = bool(texts)
        parts.title_bar.show_writing(_elsewhere(parts))

    # ---- the chat -------------------------------------------------------------------------------------------------

    async def show_turns(self, turns: list[Turn]) -> None:
        """Shows another path."""
        parts = self._parts
        self._show_transcript(bool(turns))
        await parts.transcript.show(turns, parts.flow.conversation.cut)
        parts.title_bar.show_context(parts.flow.ctx_used)
        # A long chat is a hundred thousand objects: looked through now rather than in the middle of typing.
        parts.transcript.set_timer(0.3, partial(gc.collect, 1))

    async def add_turn(self, turn: Turn) -> None:
        """Shows one more turn at the end."""
        self._show_transcript(True)
        await self._parts.transcript.add(turn)
        if turn.role == "user":
            self._parts.transcript.follow()

    def _show_transcript(self, some: bool) -> None:
        parts = self._parts
        parts.transcript.display = some
        parts.welcome.display = not some
        if not some:
            show_welcome(parts.welcome, parts.host.controller, parts.host.keymap)

    def turn_changed(self, turn: Turn) -> None:
        """Shows a turn's figures, ending, error or branches anew."""
        view = self._parts.transcript.view(turn)
        if isinstance(view, QuestionView | AnswerView):
            view.refresh_turn()

    async def reopen_turn(self, turn: Turn) -> None:
        """An answer goes on after it had ended."""
        self.turn_changed(turn)
        self._parts.transcript.follow()

    # ---- the context ----------------------------------------------------------------------------------------------

    async def choose_context(self, full: FullContext) -> ContextChoice:
        """Asks what goes when the context is full."""
        from tui.screens.chat.full_context import ask_about_context

        return await ask_about_context(self._parts.host, full)

    async def cut_changed(self) -> None:
        """The model is shown more or less of the chat than before."""
        await self._parts.transcript.show_cut(self._parts.flow.conversation.cut)

    def summarising(self, n_turns: int, prefill: PrefillProgress | None, tokens: int) -> None:
        """A summary is being made."""
        self._parts.activity.show_summarising(n_turns, prefill, tokens, self._parts.key("chat.stop"))


def _elsewhere(parts: ChatParts) -> str | None:
    """The title of a chat in which an answer is being written while another is shown."""
    chat = parts.flow.writing_chat
    return None if chat is None or chat is parts.flow.conversation else chat.title or "Untitled"
