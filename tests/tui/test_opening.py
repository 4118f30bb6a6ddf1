"""What is typed while a chat is being opened isn't lost: it stands behind the chat's draft."""

from __future__ import annotations

import asyncio

import pytest
from textual import events

from flashmoe import paths
from flashmoe.history import History
from tests.tui_support import home, keys, new_app, running, screen_is, until
from tui.app import FlashmoeApp
from tui.chat.flow import ChatFlow
from tui.terminal import key_order
from tui.widgets.find_bar import FindField

__all__ = ["home"]


@pytest.fixture
def chat() -> int:
    """A chat with a question and a draft."""
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Kept").id
        history.add_message(chat, "user", "a b c")
        history.set_draft(chat, "the draft")
    return chat


def typed(app: FlashmoeApp, text: str) -> None:
    """Types as a terminal does: without waiting for what comes of it."""
    for char in text:
        app.post_message(events.Key("space" if char == " " else char, char))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Chats are opened when this is set."""
    gate, opens = asyncio.Event(), ChatFlow.open_chat

    async def late(flow: ChatFlow, chat_id: int, message_id: int | None = None) -> str:
        await gate.wait()
        return await opens(flow, chat_id, message_id)

    monkeypatch.setattr(ChatFlow, "open_chat", late)
    return gate


@pytest.mark.parametrize("longest", [0.0, 60.0])
async def test_typed_while_the_program_starts(
    chat: int, gate: asyncio.Event, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`longest`: how long keys are kept waiting for the chat."""
    monkeypatch.setattr(key_order, "LONGEST_HOLD_S", longest)
    app = new_app(chat=chat)
    async with running(app) as pilot:
        composer = app.chat_screen.composer
        typed(app, " and more")
        await until(pilot, lambda: composer.text == " and more" or bool(longest))
        gate.set()
        parted = "\n\n" if not longest else ""
        await until(pilot, lambda: composer.text == f"the draft{parted} and more")


async def test_a_key_for_the_chat_waits_for_it(chat: int, gate: asyncio.Event) -> None:
    app = new_app(chat=chat)
    async with running(app) as pilot:
        app.post_message(events.Key("ctrl+f", None))
        gate.set()
        await until(pilot, lambda: isinstance(app.focused, FindField))


async def test_typed_while_another_chat_is_opened(chat: int, gate: asyncio.Event) -> None:
    app = new_app()
    async with running(app) as pilot:
        composer = app.chat_screen.composer
        await pilot.press(*keys("kept nowhere"))
        await pilot.press("ctrl+t")
        await screen_is(pilot, "ChatsScreen")
        await pilot.press("enter")
        await screen_is(pilot, "ChatScreen")
        typed(app, " typed")
        gate.set()
        await until(pilot, lambda: composer.text == "the draft\n\nkept nowhere typed")
        await pilot.press("ctrl+x", "n")
        await until(pilot, lambda: app.chat_screen.flow.conversation.id is None)
        assert composer.text == ""
    with History() as history:
        assert history.chat(chat).draft == "the draft\n\nkept nowhere typed"
