"""The main flows of the chat, through Pilot, with the real engine on a tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from textual import events

from backends.interface import PrefillProgress
from flashmoe.history import History
from tests.tui_support import ask, home, keys, limit, new_app, ready, running, screen_is, send, shown, slow, tiny, until
from tui.screens.dialogs import TextDialog
from tui.widgets.composer import AttachmentBar
from tui.widgets.fields import LineField
from tui.widgets.transcript.message_view import AnswerView
from tui.widgets.transcript.safe_markdown import SafeMarkdown

__all__ = ["home", "slow", "tiny"]


async def test_asks_and_keeps(tiny: Path) -> None:
    app = new_app(tiny)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 24)
        turn = await ask(pilot, "What is an expert?")
        assert turn.role == "assistant"
        assert turn.ending in ("length", "stop")
        assert turn.content
        assert turn.figures is not None
        assert turn.figures.completion_tokens == 24 or turn.ending == "stop"
        view = app.chat_screen.transcript.view(turn)
        assert isinstance(view, AnswerView)
        assert "tokens" in shown(app)
        assert app.chat_screen.composer.text == ""
        chat_id = app.chat_screen.flow.conversation.id
    with History() as history:
        path = history.path(chat_id or 0)
        assert [m.role for m in path] == ["user", "assistant"]
        assert path[0].content == "What is an expert?"
        assert path[1].content == turn.content
        assert path[1].figures is not None


async def test_two_turns_reuse_the_context(tiny: Path) -> None:
    app = new_app(tiny)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 8)
        await ask(pilot, "One")
        second = await ask(pilot, "Two")
        assert second.figures is not None
        assert second.figures.reused_tokens


async def test_stop_keeps_the_partial_answer_and_continue_goes_on_in_place(slow: Path) -> None:
    app = new_app(slow, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        await ask(pilot, "Go on for long", wait=False)
        flow = app.chat_screen.flow
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 20)
        turn = flow.turn
        assert turn is not None
        await pilot.press("escape")
        await until(pilot, lambda: not flow.busy)
        assert turn.ending == "cancelled"
        before = turn.content
        assert before
        await pilot.pause()
        assert "Stopped." in app.chat_screen.activity.text
        limit(app, 10)
        await pilot.press("ctrl+g")
        await until(pilot, lambda: turn.ending not in ("", "cancelled"))
        assert turn.content.startswith(before)
        assert len(turn.content) > len(before)
        assert len(flow.conversation.turns) == 2


async def test_regenerate_and_edit_make_branches_that_can_be_walked(tiny: Path) -> None:
    app = new_app(tiny)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 6, seed=1)
        first = await ask(pilot, "First question")
        limit(app, 6, seed=2)
        flow = app.chat_screen.flow
        await pilot.press("ctrl+x", "r")
        await until(pilot, lambda: len(flow.conversation.turns) == 2 and flow.conversation.turns[-1].variant == 2)
        await until(pilot, lambda: not flow.busy)
        second = flow.conversation.turns[-1]
        assert second.variants == 2
        assert second.id != first.id
        await until(pilot, lambda: "‹2/2›" in shown(app))
        await pilot.press("alt+left")
        await until(pilot, lambda: flow.conversation.turns[-1].id == first.id)
        await until(pilot, lambda: "‹1/2›" in shown(app))
        await pilot.press("alt+right")
        await until(pilot, lambda: flow.conversation.turns[-1].id == second.id)
        # an edited question is a branch at the top, and what stood in the composer comes back
        await pilot.press(*"draft", "f4")
        composer = app.chat_screen.composer
        await until(pilot, lambda: composer.text == "First question")
        composer.set_text("Another question")
        await pilot.press("enter")
        await until(pilot, lambda: len(flow.conversation.turns) == 2 and flow.conversation.turns[0].variants == 2)
        await until(pilot, lambda: not flow.busy)
        assert flow.conversation.turns[0].content == "Another question"
        assert composer.text == "draft"
        await pilot.press("tab", "k", "h")  # mark the question, then the branch to its left
        await until(pilot, lambda: flow.conversation.turns[0].content == "First question")
        assert flow.conversation.turns[-1].id == second.id


async def test_the_child_is_killed_in_mid_answer(slow: Path) -> None:
    app = new_app(slow, n_ctx=8192)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        await ask(pilot, "Go on for long", wait=False)
        flow = app.chat_screen.flow
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 10)
        turn, pid = flow.turn, app.controller.pid
        assert turn is not None
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(pilot, lambda: not flow.busy)
        assert turn.ending == "died"
        assert turn.content
        assert turn.error.endswith(".")
        await until(pilot, lambda: "starts it again" in app.chat_screen.activity.text)
        limit(app, 8)
        answer = await ask(pilot, "And now?")
        assert answer.ending in ("length", "stop")
        assert app.controller.pid not in (None, pid)


async def test_an_answer_is_on_disk_within_two_seconds(slow: Path) -> None:
    app = new_app(slow, n_ctx=16384)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, None)
        await ask(pilot, "Go on for long", wait=False)
        flow = app.chat_screen.flow
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 5)
        seen, turn = len(flow.turn.content) if flow.turn else 0, flow.turn
        assert turn is not None
        await asyncio.sleep(2.0)
        with History() as other:
            kept = other.message(turn.id)
        assert len(kept.content) >= seen
        await pilot.press("escape")
        await until(pilot, lambda: not flow.busy)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("no.gguf", b"this is text, not a model" * 40, "GGUF"),
        ("cut.gguf", None, "cut.gguf"),
        ("folder.gguf", "dir", "folder.gguf"),
        ("missing.gguf", "missing", "missing.gguf"),
    ],
)
async def test_bad_files_get_one_sentence_and_what_was_typed_stays(
    tiny: Path, tmp_path: Path, name: str, data: object, words: str
) -> None:
    path, cut = tmp_path / name, (await asyncio.to_thread(tiny.read_bytes))[:60_000]
    if data == "dir":
        path.mkdir()
    elif isinstance(data, bytes):
        path.write_bytes(data)
    elif data is None:
        path.write_bytes(cut)
    app = new_app(path)
    async with running(app) as pilot:
        await pilot.press(*"typed")
        await until(pilot, lambda: app.controller.state == "none" and app.chat_screen.activity.text.startswith("✗"))
        said = app.chat_screen.activity.text
        assert words in said
        assert "Traceback" not in said
        await pilot.press("enter")
        await until(pilot, lambda: "No model is loaded" in app.chat_screen.activity.text)
        assert app.chat_screen.composer.text == "typed"


async def test_a_question_waits_for_the_load(tiny: Path) -> None:
    app = new_app(tiny)
    async with running(app) as pilot:
        limit(app, 4)
        answer = await ask(pilot, "Before it is loaded")
        assert answer.ending in ("length", "stop")


async def test_context_full_asks_and_drops_the_oldest(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=256)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 10)
        await ask(pilot, "Remember this: " + "one two three " * 7)
        await ask(pilot, "and this: " + "four five six " * 7)
        flow = app.chat_screen.flow
        await send(pilot, "Now a third one that does not fit any more at all " * 2)
        await screen_is(pilot, "ChoiceDialog")
        assert "What should be left out?" in shown(app)
        await pilot.press("enter")
        await until(pilot, lambda: not flow.busy and len(flow.conversation.turns) == 6)
        assert flow.conversation.turns[0].dropped
        assert not flow.conversation.turns[4].dropped
        assert flow.conversation.turns[-1].ending in ("length", "stop", "context")
        # Esc in the dialog asks nothing and keeps the question
        await send(pilot, "xyz" * 150)
        await screen_is(pilot, "ChoiceDialog")
        await pilot.press("escape")
        await until(pilot, lambda: not flow.busy)
        await until(pilot, lambda: "Not sent" in app.chat_screen.activity.text)
        assert flow.conversation.turns[-1].content == "xyz" * 150


async def test_a_larger_context_loads_the_model_again(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=64)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 4)
        flow = app.chat_screen.flow
        await send(pilot, "xyz" * 150)
        await screen_is(pilot, "ChoiceDialog")
        assert "A context of" in shown(app)
        await pilot.press("enter")
        await until(pilot, lambda: not flow.busy and len(flow.conversation.turns) == 2)
        assert app.controller.model is not None
        assert app.controller.model.n_ctx > 256


async def test_composer_lines_history_and_large_paste(tiny: Path) -> None:
    app = new_app(tiny)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 4)
        composer = app.chat_screen.composer
        await pilot.press("a", "ctrl+j", "b", "shift+enter", "c")
        await until(pilot, lambda: composer.text == "a\nb\nc")
        await pilot.press("enter")
        await until(pilot, lambda: len(app.chat_screen.flow.conversation.turns) == 2 and not app.chat_screen.flow.busy)
        assert app.chat_screen.flow.conversation.turns[0].content == "a\nb\nc"
        await pilot.press("x", "up")
        await until(pilot, lambda: composer.text == "a\nb\nc")
        await pilot.press("down")
        await until(pilot, lambda: composer.text == "x")
        paste = "line of a log file\n" * 5_300
        composer.post_message(events.Paste(paste))
        bar = app.chat_screen.query_one(AttachmentBar)
        await until(pilot, lambda: bool(bar.items))
        assert bar.items[0].text == paste
        assert composer.text == "x"
        await until(pilot, lambda: bar.items[0].tokens is not None)
        assert (bar.items[0].tokens or 0) > 10_000
        composer.set_text("")
        await pilot.press("backspace")
        await until(pilot, lambda: not bar.items)


async def test_attach_a_file_counts_its_tokens_and_sends_it(tiny: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("seven tokens or so ``` and a fence")
    app = new_app(tiny)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 4)
        await pilot.press("f8")
        await screen_is(pilot, "TextDialog")
        await pilot.press(*keys(str(note)), "enter")
        bar = app.chat_screen.query_one(AttachmentBar)
        await until(pilot, lambda: bool(bar.items) and bar.items[0].tokens is not None)
        await ask(pilot, "Read it")
        question = app.chat_screen.flow.conversation.turns[0]
        assert question.attachments[0].name == "note.txt"
        assert "````" in question.prompt_text
        assert "note.txt" in shown(app)
        assert not bar.items


async def test_hostile_output_is_shown_not_executed(tiny: Path) -> None:
    app = new_app(tiny)
    evil = (
        "\x1b]0;owned\x07\x1b[2J\x1b]52;c;ZXZpbA==\x07 <b>bold</b> [bold red]x[/] [go](http://evil.example) "
        "![i](file:///etc/passwd) \u202eabc \x9b31m"
    )
    async with running(app) as pilot:
        await ready(pilot)
        history = await app.chat_screen.history()
        chat = history.create_chat(title=evil)
        history.add_message(chat.id, "user", evil)
        history.add_message(chat.id, "assistant", evil, model=evil)
        await app.chat_screen.flow.open_chat(chat.id)
        await pilot.pause()
        text = shown(app)
        for sign in ("\x1b", "\x07", "\x9b", "\u202e"):
            assert sign not in text
        assert "␛" in text
        assert "<b>bold</b>" in text
        assert "[bold" in text
        assert "red]x[/]" in text
        assert "‹http://evil.example›" in text
        markdown = app.chat_screen.query(SafeMarkdown).first()
        assert markdown.lines
        for line in markdown.lines:
            for span in line.spans:
                assert "@click" not in str(span.style)


async def test_ten_thousand_tokens_at_once_do_not_pile_up(tiny: Path) -> None:
    """At thousands of tokens a second, updates are coalesced: far fewer than tokens, and none left at the end."""
    app = new_app(tiny, n_ctx=4096)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 400)
        news = 0
        take = app.chat_screen.flow.take

        def counted(answer_id: str):  # type: ignore[no-untyped-def]
            nonlocal news
            news += 1
            return take(answer_id)

        app.chat_screen.flow.take = counted  # type: ignore[method-assign]
        turn = await ask(pilot, "Much")
        assert turn.figures is not None
        assert news < (turn.figures.completion_tokens or 0) / 2 or (turn.figures.completion_tokens or 0) < 40
        view = app.chat_screen.transcript.view(turn)
        assert isinstance(view, AnswerView)
        assert view._shown


async def test_a_prompt_whose_first_layer_takes_long_shows_the_time_so_far_then_the_time_left() -> None:
    app = new_app()
    async with running(app, (80, 24)) as pilot:
        line = app.chat_screen.activity
        line.show_prefill(PrefillProgress(id="a", done=0, total=40960), 100.0, "Esc")
        await until(pilot, lambda: line.size.width > 40)
        line.show_prefill(PrefillProgress(id="a", done=0, total=40960), 100.0, "Esc")
        assert "Esc stops" in line.text
        line.show_prefill(PrefillProgress(id="a", done=0, total=40960), 112.0, "Esc")
        assert "0 of 40,960 tokens  12 s so far" in line.text
        line.show_prefill(PrefillProgress(id="a", done=520, total=40960, eta_s=3723.0), 130.0, "Esc")
        assert "about 1 h 02 min left" in line.text
        assert len(line.text) <= line.size.width  # one line: what is below it must not jump
        line.show_answering(1, 1.0, "Esc", thinking=False)
        line.show_prefill(PrefillProgress(id="b", done=0, total=40960), 200.0, "Esc")
        assert "so far" not in line.text  # another prompt's time


async def test_why_a_key_did_nothing_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.widgets.activity_line.READ_S", 2.0)
    app = new_app()
    async with running(app) as pilot:
        line = app.chat_screen.activity
        line.show_answering(1, 1.0, "Esc", thinking=False)
        await pilot.press("x", "enter")  # refused: no model is loaded
        await until(pilot, lambda: "No model is loaded" in line.text)
        line.show_answering(2, 2.0, "Esc", thinking=False)
        line.done()
        assert "No model is loaded" in line.text
        await until(pilot, lambda: not line.text)
        line.show_answering(3, 3.0, "Esc", thinking=False)
        assert "3 tokens in 3 s" in line.text


async def test_a_long_chat_fills_a_large_screen_and_scrolls() -> None:
    with History() as history:
        chat = history.create_chat(title="long").id
        for number in range(40):
            history.add_message(chat, "assistant", f"Number {number}. " + "word\n" * 100)  # a few lines as Markdown
    app = new_app(chat=chat)
    async with running(app, (200, 60)) as pilot:
        transcript = app.chat_screen.transcript
        await until(pilot, lambda: transcript.turns and transcript.max_scroll_y > 0)
        assert len(transcript.views) < 20
        assert "Number 39" in shown(app)
        assert transcript.following
        await pilot.press("pageup")
        await until(pilot, lambda: not transcript.following)


async def test_a_text_that_is_not_seen_whole_says_where_the_cursor_is() -> None:
    app = new_app()
    async with running(app, (80, 23)) as pilot:
        composer = app.chat_screen.composer
        composer.set_text("one\ntwo")
        await pilot.pause()
        assert not composer.border_subtitle
        composer.set_text("\n".join(f"line {number}" for number in range(200)))
        await until(pilot, lambda: composer.border_subtitle == "line 200 of 200")
        assert composer.size.height == 6  # of 23 lines; five were seen of a paste of 200
        await pilot.press("up")
        await until(pilot, lambda: composer.border_subtitle == "line 199 of 200")


async def test_a_field_never_holds_what_the_terminal_would_act_on() -> None:
    """A question of an imported chat, to be edited; a title, to be renamed."""
    app = new_app()
    async with running(app) as pilot:
        app.chat_screen.composer.set_text("a\x1b[31mred\x07\x9b1m \u202eb\r\nc")
        await pilot.pause()
        assert app.chat_screen.composer.text == "ared b\nc"
        app.push_screen(TextDialog("Rename", "", "t\x1b]0;title\x07\x1b[2J"))
        await screen_is(pilot, "TextDialog")
        assert app.screen.query_one(LineField).value == "t"


async def test_a_warning_about_an_attachment_goes_with_it(tiny: Path) -> None:
    app = new_app(tiny, n_ctx=512)
    async with running(app) as pilot:
        await ready(pilot)
        app.chat_screen.composer.paste("word " * 4_000)
        await until(pilot, lambda: "it can't be sent whole" in app.chat_screen.activity.text)
        await pilot.press("backspace")
        await until(pilot, lambda: app.chat_screen.activity.text == "")
