"""A context that is full: the user chooses what goes, it is kept per branch, shown, and can be taken back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from backends.interface import Delta
from flashmoe.history import History
from tests.tui_support import ask, home, limit, new_app, ready, running, screen_is, send, shown, tiny, until
from tui.app import FlashmoeApp
from tui.engine.answer import Answer
from tui.widgets.transcript.cut_line import CutLine
from tui.widgets.transcript.message_view import AnswerView

__all__ = ["home", "tiny"]

LONG = "Remember this: " + "one two three " * 7
THIRD = "Now a third one that does not fit any more at all " * 2


async def fill(app: FlashmoeApp, pilot: object, choice: int) -> None:
    """Two exchanges, then a question that doesn't fit any more; takes the `choice`-th answer of the dialog."""
    await ready(pilot)  # type: ignore[arg-type]
    limit(app, 10)
    await ask(pilot, LONG)  # type: ignore[arg-type]
    await ask(pilot, "and this: " + "four five six " * 7)  # type: ignore[arg-type]
    flow = app.chat_screen.flow
    await send(pilot, THIRD)  # type: ignore[arg-type]
    await screen_is(pilot, "ChoiceDialog")  # type: ignore[arg-type]
    await pilot.press(*["down"] * choice, "enter")  # type: ignore[attr-defined]
    await until(pilot, lambda: not flow.busy and len(flow.conversation.turns) == 6)  # type: ignore[arg-type]


def prompt(app: FlashmoeApp) -> str:
    """What the model would be given now."""
    return "\n".join(message.content for message in app.chat_screen.flow.conversation.messages())


async def test_what_was_left_out_is_shown_kept_and_can_be_taken_back(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app, (120, 50)) as pilot:
        await fill(app, pilot, 0)
        flow = app.chat_screen.flow
        dropped = [turn.id for turn in flow.conversation.dropped]
        assert dropped
        assert LONG not in prompt(app)
        chat = flow.conversation.id or 0
        await until(pilot, lambda: f"the model isn't shown the {len(dropped)} messages above" in shown(app))
        children = list(app.chat_screen.transcript.children)
        line = next(i for i, child in enumerate(children) if isinstance(child, CutLine))
        assert [view.turn.id for view in children[:line]] == dropped  # type: ignore[attr-defined]
    # after a restart, with another context size: no dialog, the same prompt
    app = new_app(tiny, n_ctx=300)
    async with running(app, (120, 50)) as pilot:
        await ready(pilot)
        await app.chat_screen.flow.open_chat(chat)
        flow = app.chat_screen.flow
        limit(app, 4)
        assert [turn.id for turn in flow.conversation.dropped] == dropped
        await until(pilot, lambda: "messages above" in shown(app))
        await pilot.press("ctrl+x", "r")  # the same question again: nothing is asked
        await until(pilot, lambda: not flow.busy and flow.conversation.turns[-1].variant == 2)
        assert type(app.screen).__name__ == "ChatScreen"
        await until(pilot, lambda: "length limit" in app.chat_screen.activity.text)  # the answer's own last word
        await pilot.press("f10")
        await until(pilot, lambda: not flow.conversation.dropped)
        await until(pilot, lambda: "messages above" not in shown(app))
        assert "again" in app.chat_screen.activity.text
        assert LONG in prompt(app)
        await pilot.press("f10")
        await until(pilot, lambda: "Nothing is left out" in app.chat_screen.activity.text)
    with History() as history:
        assert history.context_cut(history.chat(chat).leaf) is None


async def test_what_would_not_help_is_not_offered(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app, (120, 50)) as pilot:
        await ready(pilot)
        limit(app, 10)
        await ask(pilot, LONG)
        await send(pilot, "xq zj " * 4000)  # more than the model was trained for
        await screen_is(pilot, "ChoiceDialog")
        assert "The question alone has about" in shown(app)
        assert "Leave out" not in shown(app)
        assert "A context of" not in shown(app)
        await pilot.press("enter")
        await until(pilot, lambda: "Not sent" in app.chat_screen.activity.text)
        assert "xq zj" in app.chat_screen.flow.conversation.turns[-1].content


async def test_a_cut_belongs_to_its_branch(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app, (120, 50)) as pilot:
        await fill(app, pilot, 0)
        flow = app.chat_screen.flow
        dropped = len(flow.conversation.dropped)
        await pilot.press("tab", "g", "e")  # edit the first question: a branch on which nothing was left out
        await until(pilot, lambda: app.chat_screen.composer.text == LONG)
        app.chat_screen.composer.set_text("short")
        await pilot.press("enter")
        await until(pilot, lambda: not flow.busy and len(flow.conversation.turns) == 2)
        assert not flow.conversation.dropped
        assert not app.chat_screen.transcript.query(CutLine)
        await pilot.press("alt+left")
        await until(pilot, lambda: len(flow.conversation.turns) == 6)
        assert len(flow.conversation.dropped) == dropped
        await until(pilot, lambda: "messages above" in shown(app))


async def test_a_summary_stands_in_is_shown_and_kept(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app, (120, 50)) as pilot:
        await fill(app, pilot, 1)
        conversation = app.chat_screen.flow.conversation
        chat, summary = conversation.id or 0, conversation.summary
        assert summary
        assert f"Summary of the conversation so far: {summary}" in prompt(app)
        await until(pilot, lambda: "has a summary" in shown(app) or "summarised" in shown(app))
        assert "▸ " in shown(app)
        await pilot.press("tab", "s")
        await until(pilot, lambda: "▾ " in shown(app))
    app = new_app(tiny, n_ctx=256)
    async with running(app) as pilot:
        await app.chat_screen.flow.open_chat(chat)
        assert app.chat_screen.flow.conversation.summary == summary


async def test_a_stopped_summary_leaves_nothing_out(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 10)
        await ask(pilot, LONG)
        await ask(pilot, "and this: " + "four five six " * 7)
        flow = app.chat_screen.flow
        stops: list[asyncio.Task[bool]] = []

        def stopped_at_once(*_: object) -> None:  # as Esc would; a summary of the tiny model takes milliseconds
            if not stops:
                stops.append(asyncio.create_task(flow.stop()))

        monkeypatch.setattr(app.chat_screen.view, "summarising", stopped_at_once)
        await send(pilot, THIRD)
        await screen_is(pilot, "ChoiceDialog")
        await pilot.press("down", "enter")
        await until(pilot, lambda: bool(stops) and not flow.busy)
        assert not flow.conversation.dropped
        await until(pilot, lambda: "Not sent" in app.chat_screen.activity.text)


async def test_a_larger_context_is_kept_with_the_chat_and_the_model(tiny: Path, tmp_path: Path) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app, (120, 50)) as pilot:
        await fill(app, pilot, 2)
        assert app.controller.model is not None
        larger = app.controller.model.n_ctx
        assert larger > 256
        chat = app.chat_screen.flow.conversation.id or 0

    def context(app: FlashmoeApp) -> int:
        return app.controller.model.n_ctx if app.controller.model is not None and app.controller.state == "ready" else 0

    app = new_app(tiny, n_ctx=256)
    async with running(app, (120, 50)) as pilot:
        await ready(pilot)
        assert context(app) == 256
        await app.chat_screen.flow.open_chat(chat)
        await until(pilot, lambda: context(app) == larger)
        await until(pilot, lambda: app.chat_screen.flow.conversation.turns)
        await pilot.press("ctrl+x", "r")  # it fits: nothing is asked
        await until(pilot, lambda: app.chat_screen.flow.conversation.turns[-1].variant == 2)
        await until(pilot, lambda: not app.chat_screen.flow.busy)
        assert not app.chat_screen.flow.conversation.dropped
        await app.chat_screen.flow.new_chat()
        assert context(app) == larger  # a chat that can do with less doesn't load the model again
    app = new_app(tiny, n_ctx=256, chat=chat)  # opened with the program
    async with running(app) as pilot:
        await until(pilot, lambda: context(app) == larger)
    other = tmp_path / "other.gguf"
    await asyncio.to_thread(shutil.copy, tiny, other)
    app = new_app(other, n_ctx=256)
    async with running(app) as pilot:
        await ready(pilot)
        await app.chat_screen.flow.open_chat(chat)
        await app.chat_screen.flow.given.settled()
        assert context(app) == 256  # so large a context on another model was never asked for


async def test_an_end_that_comes_while_text_is_drawn_loses_nothing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text and end that arrive while earlier text is being drawn are taken next; then the engine counts as free."""
    app = new_app(tiny)
    said: list[str] = []
    feed, add = AnswerView.feed, Answer.add

    async def until_it_ended(view: AnswerView, parts: list[tuple[str, str]]) -> None:
        tasks = [answer.task for answer in app.controller._answers.values() if answer.task is not None]
        if tasks:  # the end has come, and nobody has taken it yet
            await asyncio.wait(tasks)
        await feed(view, parts)

    def noted(answer: Answer, delta: Delta) -> None:
        said.append(delta.text)
        add(answer, delta)

    monkeypatch.setattr(AnswerView, "feed", until_it_ended)
    monkeypatch.setattr(Answer, "add", noted)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 80)
        turn = await ask(pilot, "Much")
        assert turn.content == "".join(said)
        assert not app.controller.busy
        with History() as history:
            assert history.message(turn.id).content == turn.content
