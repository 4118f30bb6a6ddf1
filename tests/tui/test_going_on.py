"""An answer goes on while another chat is looked at; questions wait for its end; loading another model asks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from textual import events

from flashmoe.history import History
from tests.tui_support import (
    ask,
    home,
    limit,
    new_app,
    ready,
    running,
    screen_is,
    send,
    settle,
    shown,
    slow,
    tiny,
    until,
)
from tui.screens.chat import engine_news
from tui.terminal import key_order

__all__ = ["home", "slow", "tiny"]


async def test_an_answer_goes_on_in_a_chat_that_is_left_and_is_there_on_return(slow: Path) -> None:
    app = new_app(slow, n_ctx=4096)
    async with running(app, (120, 36)) as pilot:
        await ready(pilot)
        limit(app, None)
        flow = app.chat_screen.flow
        await ask(pilot, "Go on for long", wait=False)
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 20)
        turn, first = flow.turn, flow.conversation
        assert turn is not None
        await pilot.press("ctrl+x", "n")
        await until(pilot, lambda: flow.conversation is not first)
        before = len(turn.content)
        await until(pilot, lambda: len(turn.content) > before + 20)  # it is still being written
        assert flow.busy
        assert "✎ Go on for" in shown(app)
        await pilot.press("ctrl+t")
        await screen_is(pilot, "ChatsScreen")
        await until(pilot, lambda: "✎ " in shown(app) and "Go on for long" in shown(app))
        await pilot.press("enter")
        await screen_is(pilot, "ChatScreen")
        await until(pilot, lambda: flow.conversation is first)
        view = app.chat_screen.transcript.view(turn)
        before = len(turn.content)
        await until(pilot, lambda: len(turn.content) > before + 20)
        assert view is not None
        await pilot.press("escape")
        await until(pilot, lambda: not flow.busy)
        assert turn.ending == "cancelled"
        chat_id = first.id
    with History() as history:
        path = history.path(chat_id or 0)
        assert path[1].content == turn.content


async def test_an_answer_may_end_while_another_chat_is_shown(slow: Path) -> None:
    app = new_app(slow, n_ctx=2048)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 400)
        flow = app.chat_screen.flow
        await ask(pilot, "A few words", wait=False)
        await until(pilot, lambda: flow.turn is not None)
        first = flow.conversation
        await pilot.press("ctrl+x", "n")
        await until(pilot, lambda: flow.conversation is not first)
        await until(pilot, lambda: "has an answer" in app.chat_screen.activity.text)
        assert flow.conversation.turns == []
    with History() as history:
        assert [m.status for m in history.path(first.id or 0)][1] == "done"


async def test_a_question_waits_for_the_end_can_be_edited_and_is_asked_then(slow: Path) -> None:
    app = new_app(slow, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        flow, composer = app.chat_screen.flow, app.chat_screen.composer
        await ask(pilot, "Go on for long", wait=False)
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 20)
        await send(pilot, "And a second question")
        await until(pilot, lambda: "queued  And a second question" in shown(app))
        assert composer.text == ""
        await pilot.press("up")
        await until(pilot, lambda: composer.text == "And a second question")
        assert not flow.queue.of(flow.conversation)
        await send(pilot, "And a second question!")
        await until(pilot, lambda: len(flow.queue.of(flow.conversation)) == 1)
        limit(app, 8)
        await pilot.press("escape")
        await until(pilot, lambda: len(flow.conversation.turns) == 4)
        await until(pilot, lambda: not flow.busy)
        assert not flow.queue.of(flow.conversation)
        assert flow.conversation.turns[2].content == "And a second question!"
        assert flow.conversation.turns[3].content


async def test_loading_another_model_asks_while_an_answer_is_written(slow: Path, tiny: Path) -> None:
    app = new_app(slow, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        flow = app.chat_screen.flow
        await ask(pilot, "Go on for long", wait=False)
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 20)
        app.run_worker(app.load_model(str(tiny)))
        await screen_is(pilot, "ChoiceDialog")
        await pilot.press("escape")
        await screen_is(pilot, "ChatScreen")
        assert flow.busy
        app.run_worker(app.load_model(str(tiny)))
        await screen_is(pilot, "ChoiceDialog")
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.controller.request is not None and app.controller.request.path == str(tiny))
        await until(pilot, lambda: app.controller.state == "ready" and not flow.busy)


async def test_what_is_typed_right_behind_the_key_that_takes_a_question_back_is_added_to_it(slow: Path) -> None:
    """All in one piece, as over a slow line: it was put before the question, and the question was lost."""
    app = new_app(slow, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        flow = app.chat_screen.flow
        await ask(pilot, "Go on for long", wait=False)
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 20)
        await send(pilot, "And a second question")
        await until(pilot, lambda: len(flow.queue.of(flow.conversation)) == 1)
        for key, character in (("up", None), ("!", "!"), ("enter", "\r")):
            app.post_message(events.Key(key, character))
        await until(pilot, lambda: [q.text for q in flow.queue.of(flow.conversation)] == ["And a second question!"])
        assert app.chat_screen.composer.text == ""


async def test_enter_while_the_question_before_is_still_being_kept_queues_the_next(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes longer than keys are held back for: nothing of what is typed meanwhile is lost."""
    monkeypatch.setattr(key_order, "LONGEST_HOLD_S", 0.05)
    app = new_app(slow, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        flow, composer = app.chat_screen.flow, app.chat_screen.composer
        disk, keeps = asyncio.Event(), flow.send

        async def slowly(*arguments: Any) -> bool:
            await disk.wait()
            return await keeps(*arguments)

        monkeypatch.setattr(flow, "send", slowly)
        await send(pilot, "one")
        await settle(pilot)
        await pilot.press("t", "w", "o", "enter", "x")
        await until(pilot, lambda: composer.text == "onetwox")
        disk.set()
        await until(pilot, lambda: [q.text for q in flow.queue.of(flow.conversation)] == ["two"])
        assert composer.text == "x"
        assert flow.conversation.turns[0].content == "one"


async def test_what_was_said_of_one_chat_is_gone_in_the_next(slow: Path) -> None:
    app = new_app(slow, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        flow, activity = app.chat_screen.flow, app.chat_screen.activity
        await ask(pilot, "Go on for long", wait=False)
        await until(pilot, lambda: activity.text.startswith("Answering"))
        await pilot.press("ctrl+x", "n")
        await until(pilot, lambda: not flow.conversation.turns)
        await until(pilot, lambda: activity.text == "")
        await settle(pilot, 1.5)
        assert activity.text == ""  # the answer elsewhere goes on, in the title


async def test_that_a_model_is_ready_is_said_for_a_while(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_news, "READY_S", 0.3)
    app = new_app(tiny)
    async with running(app) as pilot:
        await ready(pilot)
        await until(pilot, lambda: "is ready after" in app.chat_screen.activity.text)
        await until(pilot, lambda: app.chat_screen.activity.text == "")
