"""Find in the shown chat."""

from __future__ import annotations

from textual import events

from flashmoe import paths
from flashmoe.history import History
from tests.tui_support import home, keys, running, shown, until
from tui.app import AppOptions, FlashmoeApp
from tui.widgets.find_bar import FindField
from tui.widgets.transcript.lit import Lit

__all__ = ["home"]


async def test_matches_are_counted_walked_and_lit() -> None:
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Routers")
        for number in range(30):
            history.add_message(chat.id, "user", f"Question {number}?")
            filler = "\n\n".join(f"line {line}" for line in range(20))
            word = "A **needle** here." if number in (3, 20) else "Nothing."
            history.add_message(chat.id, "assistant", f"{word}\n\n{filler}")
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app, (100, 30)) as pilot:
        await until(pilot, lambda: len(app.chat_screen.flow.conversation.turns) == 60)
        await pilot.press("ctrl+f")
        await until(pilot, lambda: isinstance(app.focused, FindField))
        await pilot.press(*keys("needle"))
        await until(pilot, lambda: "2 of 2" in shown(app))
        assert "find needle" in shown(app)
        await until(pilot, lambda: "A needle here." in shown(app))
        assert Lit.text == "needle"
        lines = [strip for strip in app.screen._compositor.render_strips() if "A needle here." in strip.text]
        styles = [segment.style for segment in lines[0] if segment.text == "needle"]
        assert styles
        assert styles[0] is not None
        assert styles[0].reverse
        await pilot.press("up")
        await until(pilot, lambda: "1 of 2" in shown(app))
        await until(pilot, lambda: "A needle here." in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "2 of 2" in shown(app))
        await pilot.press(*"zz")
        await until(pilot, lambda: "no match" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: app.focused is app.chat_screen.composer)
        assert not Lit.text


async def test_what_is_folded_is_found_and_unfolded() -> None:
    """In thinking, and in the lines of a long question that aren't shown; no message stays marked behind it."""
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Folded")
        code = "\n".join(f"line {number}" for number in range(60))
        history.add_message(chat.id, "user", f"{code}\na needle below\n{code}")
        thought = "\n".join(f"thought {number}" for number in range(60))
        history.add_message(chat.id, "assistant", "Nothing.", thinking=f"{thought}\na needle thought\n{thought}")
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app, (100, 30)) as pilot:
        await until(pilot, lambda: app.chat_screen.flow.conversation.id == chat.id)
        await pilot.press("ctrl+f")
        await until(pilot, lambda: isinstance(app.focused, FindField))
        await pilot.press(*keys("needle"))
        await until(pilot, lambda: "2 of 2" in shown(app) and "a needle thought" in shown(app))
        await pilot.press("up")
        await until(pilot, lambda: "1 of 2" in shown(app) and "a needle below" in shown(app))
        await pilot.press("escape")
        await until(pilot, lambda: app.focused is app.chat_screen.composer)
        assert app.chat_screen.transcript.marked is None


async def test_a_match_is_seen_however_fast_it_is_typed() -> None:
    """All letters in one piece, while the chat stands at its end."""
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Long")
        history.add_message(chat.id, "user", "Go on")
        history.add_message(chat.id, "assistant", "\n\n".join(["A needle here.", *(f"line {n}" for n in range(40))]))
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app, (80, 24)) as pilot:
        await until(pilot, lambda: app.chat_screen.flow.conversation.id == chat.id and "line 39" in shown(app))
        await pilot.press("ctrl+f")
        await until(pilot, lambda: isinstance(app.focused, FindField))
        for letter in "needle":
            app.post_message(events.Key(letter, letter))
        await until(pilot, lambda: "1 of 1" in shown(app) and "A needle here." in shown(app), 60)


async def test_the_key_bar_says_what_the_keys_do_to_a_marked_message() -> None:
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Marked")
        history.add_message(chat.id, "user", "\n".join(f"line {number}" for number in range(60)))
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app, (100, 30)) as pilot:
        await until(pilot, lambda: app.chat_screen.flow.conversation.id == chat.id and "20 more lines" in shown(app))
        await pilot.press("tab")
        await until(pilot, lambda: "e edit" in shown(app) and "Enter unfold" in shown(app))
        await pilot.press("enter")
        await until(pilot, lambda: "line 59" in shown(app))
        await pilot.press("i")
        await until(pilot, lambda: "e edit" not in shown(app) and "models" in shown(app))
