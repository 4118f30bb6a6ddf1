"""An answer goes on while another chat is looked at; questions wait for its end; loading another model asks."""

from __future__ import annotations

from pathlib import Path

from flashmoe.history import History
from tests.tui_support import ask, home, limit, new_app, ready, running, screen_is, send, shown, slow, tiny, until

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
