"""What leads away from the shown chat: a new one, the list of chats, the settings, other screens."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from textual.screen import Screen

from flashmoe.history.records import HistoryError
from tui.screens.chat.drafting import Drafting
from tui.screens.chat.parts import ChatParts

if TYPE_CHECKING:
    from flashmoe.history import History


class Opening:
    """Opens chats and screens; what was typed stays with the chat that is left."""

    def __init__(self, parts: ChatParts, drafting: Drafting) -> None:
        self._parts = parts
        self._drafting = drafting

    # ---- chats ----------------------------------------------------------------------------------------------------

    def new_chat(self) -> None:
        """An empty chat; what was typed and not sent stays with the old one."""
        self._parts.start(self._new_chat(), opens=True)

    async def _new_chat(self) -> None:
        parts = self._parts
        kept = parts.flow.conversation.id is not None
        self._drafting.end_edit(restore=True)
        safe = await parts.flow.keep_draft(parts.composer.text)
        await parts.flow.new_chat()
        if safe:
            parts.activity.clear()  # what was said there was about the chat that is left
        if kept and safe:  # what was typed in a chat that isn't kept yet stays in the composer
            parts.composer.clear_text()
        parts.composer.focus()

    def chats(self) -> None:
        """The list of chats."""
        self._parts.start(self._choose_chat(search=False), opens=True)

    def search_chats(self) -> None:
        """The list of chats, to search."""
        self._parts.start(self._choose_chat(search=True), opens=True)

    async def _choose_chat(self, *, search: bool) -> None:
        from tui.screens.chats import ChatsScreen, Opened

        parts, flow = self._parts, self._parts.flow
        safe = await flow.keep_draft(parts.composer.text)
        history = await parts.archive.history()
        current, writing = flow.conversation.id, flow.writing_chat
        screen: Screen[Opened | None] = ChatsScreen(
            parts.host.keymap, history, current, search=search, writing=writing.id if writing is not None else None
        )
        opened: Opened | None = await parts.host.ask_screen(screen)
        if current is not None and await history.in_thread(_is_deleted, history, current):
            await flow.new_chat()
            parts.composer.clear_text()
        if opened is None or (opened.chat_id == current and opened.message_id is None):
            return
        self._drafting.end_edit(restore=False)
        if safe:
            parts.activity.clear()
        await self.show_chat(opened.chat_id, opened.message_id, carry=not safe)
        if opened.message_id is not None:
            await parts.transcript.reveal(opened.message_id)

    async def show_chat(self, chat_id: int, message_id: int | None = None, *, carry: bool = False) -> None:
        """Shows a chat of the history with its draft. What was typed before in a chat that isn't kept (or whose draft
        can't be: `carry`), and what is typed while the chat is read, stands behind the draft."""
        composer, conversation = self._parts.composer, self._parts.flow.conversation
        left = composer.text
        composer.clear_text()
        release = self._parts.host.hold_keys()
        draft, carried = left, ""
        try:
            kept = conversation.id is not None and not carry
            draft, carried = await self._parts.flow.open_chat(chat_id, message_id), "" if kept else left
        finally:
            release()
            before = "\n\n".join(text for text in (draft, carried) if text)
            composer.set_text(before + composer.text)

    # ---- other screens --------------------------------------------------------------------------------------------

    def settings(self) -> None:
        """System prompt, sampling, preset, thinking of this chat."""
        self._parts.start(self._change_settings(), opens=True)

    async def _change_settings(self) -> None:
        from tui.screens.settings import SettingsScreen

        host, flow = self._parts.host, self._parts.flow
        model = host.controller.model
        changed = await host.ask_screen(
            SettingsScreen(
                flow.conversation.settings,
                flow.given.presets,
                model.name if model is not None else "",
                can_think=model is None or model.can_think,
            )
        )
        if changed is not None:
            flow.conversation.settings = changed
            await flow.given.settings_changed()
            self._parts.say("The next answer uses these settings.")

    def models(self) -> None:
        """The models."""
        self._parts.start(self._parts.host.choose_model(), opens=True)

    def downloads(self) -> None:
        """The downloads."""
        self._parts.start(self._parts.host.choose_model(downloads=True), opens=True)


def _is_deleted(history: History, chat_id: int) -> bool:
    with contextlib.suppress(HistoryError):
        return history.chat(chat_id).deleted is not None
    return True
