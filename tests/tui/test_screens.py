"""The other screens, the keys, the themes: through Pilot, most without an engine."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from textual.css.query import NoMatches
from textual.worker import active_worker

from flashmoe import paths
from flashmoe.config.schema import Config, LoadedConfig, UiConfig
from flashmoe.history import History, HistoryError
from flashmoe.hub import catalogue
from tests.tui_support import home, keys, new_app, running, screen_is, settle, shown, until
from tui import keymap, themes
from tui.app import AppOptions, FlashmoeApp
from tui.terminal import facts as terminal
from tui.texts import code_blocks, last_command, read_text_file

__all__ = ["home"]


def with_ui(**ui: object) -> FlashmoeApp:
    """An app with these settings of the section ui."""
    loaded = LoadedConfig(Config(ui=UiConfig(**ui)), paths.config_file(), False)  # type: ignore[arg-type]
    return FlashmoeApp(AppOptions(measure=False), loaded)


def make_chats(*titles: str) -> list[int]:
    """Chats with one exchange each."""
    paths.ensure_dir(paths.data_dir())
    ids = []
    with History() as history:
        for title in titles:
            chat = history.create_chat(title=title)
            history.add_message(chat.id, "user", f"Question about {title}")
            history.add_message(chat.id, "assistant", f"Answer about {title}: the router chooses.")
            ids.append(chat.id)
    return ids


# ---- keys --------------------------------------------------------------------------------------------------------


def test_default_keys_collide_nowhere() -> None:
    defaults = keymap.resolve({})
    assert not defaults.problems
    assert keymap._first_clash(defaults.keys, dict.fromkeys(defaults.keys, "")) is None
    assert len({spec.id for spec in keymap.KEYS}) == len(keymap.KEYS)


def test_remapping_reports_what_it_refuses() -> None:
    result = keymap.resolve({"chat.stop": "ctrl+o", "chat.nwe": "f12", "chat.copy": "ctrl+", "chat.save": "f11"})
    assert result.overrides == {"chat.save": "f11"}
    assert any("already" in problem and "chat.models" in problem for problem in result.problems)
    assert any("did you mean chat.new" in problem for problem in result.problems)
    assert any("not a key" in problem for problem in result.problems)
    swapped = keymap.resolve({"chat.new": "ctrl+t", "chat.chats": "ctrl+b"})
    assert not swapped.problems
    assert swapped.display("chat.new") == "^T"


async def test_a_remapped_key_works_and_is_shown() -> None:
    app = with_ui(keys={"composer.send": "ctrl+s", "chat.save": "f12", "composer.newline": "enter", "app.help": "f11"})
    async with running(app, (120, 36)) as pilot:  # wide enough for the ids in the help
        await pilot.press("a", "enter", "b")
        await until(pilot, lambda: app.chat_screen.composer.text == "a\nb")
        assert "F11 help" in shown(app)
        await pilot.press("f11")
        await screen_is(pilot, "HelpScreen")
        text = shown(app)
        assert "F11" in text
        assert "app.help" in text
        await pilot.press("escape")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "No model is loaded" in app.chat_screen.activity.text)
        assert app.chat_screen.composer.text == "a\nb"


async def test_every_action_is_in_the_palette_and_exists() -> None:
    app = new_app()
    async with running(app) as pilot:
        await settle(pilot)
        titles = {command.title for command in app.get_system_commands(app.screen)}
        assert {"Theme", "Models", "New chat", "Chats", "Quit", "Copy the last command"} <= titles
        for spec in keymap.KEYS:
            if spec.scope == "chat":
                assert hasattr(app.chat_screen, f"action_{spec.action.split('(')[0]}"), spec.id
        await pilot.press("ctrl+x", "x")
        await screen_is(pilot, "CommandPalette")


# ---- themes ------------------------------------------------------------------------------------------------------


def test_the_projects_themes_are_right() -> None:
    found = themes.load_themes(paths.builtin_themes_dir())
    assert not found.problems
    assert len(found.themes) >= 6
    assert sum(not theme.dark for theme in found.themes.values()) >= 2
    assert any(theme.ansi for theme in found.themes.values())
    assert all(found.descriptions[name] for name in found.themes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("primary: [", "not valid YAML"),
        ("- a list", "must be a mapping"),
        ("primary: nocolour\nforeground: '#fff'\nbackground: '#000'", "not a colour"),
        ("primary: '#fff'\nforeground: '#fff'", "'background' is missing"),
        ("primry: '#fff'", "not a theme field"),
        ("primary: '#fff'\nforeground: '#fff'\nbackground: '#000'\ndark: 3", "true or false"),
        ("primary: '#fff'\nforeground: '#fff'\nbackground: '#000'\nvariables: {border: 'a; b'}", "variables.border"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_broken_theme_is_named_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    found = themes.load_themes(tmp_path)
    assert not found.themes
    assert len(found.problems) == 1
    assert "mine.yaml" in found.problems[0]
    assert words in found.problems[0]


async def test_the_users_theme_wins_a_broken_one_is_one_toast_and_the_preview_is_live() -> None:
    folder = paths.ensure_dir(paths.user_themes_dir())
    (folder / "ember.yaml").write_text(
        'name: ember\nprimary: "#00ff00"\nforeground: "#ffffff"\nbackground: "#001122"\ndescription: mine'
    )
    (folder / "broken.yaml").write_text("primary: 3")
    app = new_app()
    async with running(app) as pilot:
        await settle(pilot, 0.3)
        assert app.theme == "ember"
        assert app.current_theme.background == "#001122"
        assert len([n for n in app._notifications if "broken.yaml" in n.message]) == 1
        app.action_themes()
        await screen_is(pilot, "ThemePicker")
        await pilot.press("down")
        await until(pilot, lambda: app.theme != "ember")
        await pilot.press("escape")
        await until(pilot, lambda: app.theme == "ember")


@pytest.mark.parametrize("name", ["contrast", "paper", "daylight", "terminal", "moss", "midnight"])
async def test_every_theme_draws_the_main_screen(name: str) -> None:
    app = new_app(theme=name)
    async with running(app) as pilot:
        await settle(pilot)
        assert app.theme == name
        assert "models" in shown(app)


# ---- layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(200, 60), (120, 36), (100, 30), (80, 24), (60, 20), (40, 12)])
async def test_layouts(size: tuple[int, int]) -> None:
    app = new_app()
    async with running(app, size) as pilot:
        await settle(pilot, 0.3)
        text = shown(app)
        assert "Ask something" in text
        assert "help" in text
        assert "smaller than" not in text
        assert app.chat_screen.query_one("#monitor").display == (size[0] >= 100)
        await pilot.press("f2")
        await settle(pilot)
        assert app.chat_screen.query_one("#monitor").display == (size[0] < 100)


OTHERS = ("kept", "cover", "F1", "Attach", "Regenerate")


@pytest.mark.parametrize("size", [(40, 10), (30, 20), (10, 4)])
async def test_too_small_says_so_on_every_screen_and_loses_nothing(size: tuple[int, int]) -> None:
    app = new_app()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        composer = app.chat_screen.composer
        await pilot.press(*"kept")
        await until(pilot, lambda: composer.text == "kept")
        app.notify("A toast that would cover the sentence, since it is as wide as the terminal.", timeout=60)
        await until(pilot, lambda: "would cover" in shown(app))
        for screen in ("ChatScreen", "TextDialog", "CommandPalette"):
            if screen == "TextDialog":
                await pilot.press("f8")
            elif screen == "CommandPalette":
                await pilot.press("escape", "ctrl+x", "x")
            await screen_is(pilot, screen)
            await pilot.resize_terminal(*size)
            await until(pilot, lambda: "terminal" in shown(app) and not any(word in shown(app) for word in OTHERS))
            await pilot.resize_terminal(80, 24)
            await until(pilot, lambda: any(word in shown(app) for word in OTHERS))
            if screen == "ChatScreen":
                await pilot.press(*"!")  # and the focus is where it was
                await until(pilot, lambda: composer.text == "kept!")
                composer.set_text("kept")
            elif screen == "TextDialog":
                await pilot.press(*"path")
                await until(pilot, lambda: app.screen.query_one("Input").value == "path")  # type: ignore[attr-defined]
        await app.controller.close()


async def test_a_terminal_that_begins_too_small() -> None:
    app = new_app()
    async with running(app, (30, 8)) as pilot:
        await until(pilot, lambda: "smaller than" in shown(app))
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: "Ask something" in shown(app))
        await pilot.press(*"typed")
        await until(pilot, lambda: app.chat_screen.composer.text == "typed")


async def test_a_storm_of_resizes() -> None:
    app = new_app()
    async with running(app, (120, 36)) as pilot:
        for step in range(40):
            await pilot.resize_terminal(30 + step * 4, 8 + step)
        await pilot.resize_terminal(100, 30)
        await pilot.press(*"ok")
        await until(pilot, lambda: "ok" in shown(app))


# ---- chats -------------------------------------------------------------------------------------------------------


async def test_chats_list_search_rename_pin_delete_undo_export_open(tmp_path: Path) -> None:
    ids = make_chats("Alpha tuning", "Beta routers", "Gamma disks")
    app = new_app()
    async with running(app) as pilot:
        await settle(pilot, 0.3)
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "Gamma disks" in shown(app))
        await pilot.press(*"beta")
        await until(pilot, lambda: "Beta routers" in shown(app) and "Alpha" not in shown(app))
        await pilot.press("f2")
        await screen_is(pilot, "TextDialog")
        await pilot.press("end", *keys(" two"), "enter")
        await until(pilot, lambda: "Beta routers two" in shown(app))
        await pilot.press("ctrl+x", "p")
        await until(pilot, lambda: "Pinned." in shown(app))
        await pilot.press("f8")
        await until(pilot, lambda: "Deleted “" in shown(app))
        with History() as other:
            assert other.chat(ids[1]).deleted is not None
        await pilot.press("ctrl+x", "u")
        await until(pilot, lambda: "Restored." in shown(app))
        await pilot.press("ctrl+s")
        await screen_is(pilot, "TextDialog")
        target = tmp_path / "chat.json"
        await pilot.press("ctrl+u", *keys(str(target)), "enter")
        await until(pilot, lambda: "Exported to" in shown(app))
        assert "Question about Beta" in target.read_text()
        await pilot.press("enter")
        await screen_is(pilot, "ChatScreen")
        await until(pilot, lambda: "Answer about Beta" in shown(app))
        assert app.chat_screen.flow.conversation.id == ids[1]
    with History() as other:
        assert other.chat(ids[1]).pinned
        assert other.chat(ids[1]).title == "Beta routers two"


async def test_a_draft_stays_with_its_chat() -> None:
    first, second = make_chats("One", "Two")
    app = new_app()
    async with running(app) as pilot:
        flow = app.chat_screen.flow
        await flow.open_chat(first)
        await pilot.press(*"unsent")
        await pilot.press("ctrl+x", "n")
        await until(pilot, lambda: flow.conversation.id is None and app.chat_screen.composer.text == "")
        app.chat_screen.composer.set_text(await flow.open_chat(first))
        assert app.chat_screen.composer.text == "unsent"
        assert second


async def test_settings_are_checked_and_kept() -> None:
    (chat_id,) = make_chats("Set")
    app = new_app()
    async with running(app, (100, 40)) as pilot:
        flow = app.chat_screen.flow
        await flow.open_chat(chat_id)
        await pilot.press("f3")
        await screen_is(pilot, "SettingsScreen")
        await pilot.press(*keys("be brief"))
        app.screen.query_one("#field-temperature").value = "warm"  # type: ignore[attr-defined]
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "'warm' is not a number" in shown(app))
        app.screen.query_one("#field-temperature").value = "0.25"  # type: ignore[attr-defined]
        await pilot.press("ctrl+s")
        await screen_is(pilot, "ChatScreen")
        await until(pilot, lambda: flow.conversation.settings.system_prompt == "be brief")
        assert flow.given.sampling().temperature == 0.25
        await settle(pilot)
    with History() as other:
        kept = other.chat(chat_id).settings
        assert kept.system_prompt == "be brief"
        assert kept.sampling is not None


async def test_a_long_chat_mounts_only_what_is_near(home: Path) -> None:
    paths.ensure_dir(paths.data_dir())
    with History() as history, history.transaction():
        chat = history.create_chat(title="Long")
        for number in range(300):
            history.add_message(chat.id, "assistant" if number % 2 else "user", f"Message {number}. " + "word " * 150)
    app = new_app()
    async with running(app) as pilot:
        await app.chat_screen.flow.open_chat(chat.id)
        transcript = app.chat_screen.transcript
        await until(pilot, lambda: "Message 299" in shown(app) or transcript.scroll_y > 0)
        assert len(transcript.views) < 20
        for _ in range(40):
            await pilot.press("pageup")
        await settle(pilot, 0.3)
        assert len(transcript.views) <= 40
        await pilot.press("ctrl+home")
        await until(pilot, lambda: "Message 0." in shown(app))
        await pilot.press("ctrl+end")
        await until(pilot, lambda: transcript.turns[-1] is transcript.views[-1].turn and transcript.following)
        assert len(transcript.views) < 20


# ---- clipboard, files --------------------------------------------------------------------------------------------


async def test_copy_says_sent_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    (chat_id,) = make_chats("Copy")
    app = new_app()
    written: list[str] = []
    async with running(app) as pilot:
        monkeypatch.setattr(app, "write_terminal", written.append)
        await app.chat_screen.flow.open_chat(chat_id)
        await pilot.press("ctrl+x", "y")
        await until(pilot, lambda: bool(written))
        assert written[0].startswith("\x1b]52;c;")
        assert "sent to the terminal" in app.chat_screen.activity.text
        app.chat_screen.flow.conversation.turns[-1].content = "x" * 100_000
        await pilot.press("ctrl+x", "y")
        await until(pilot, lambda: "too large" in app.chat_screen.activity.text)
        assert len(written) == 1


async def test_code_blocks_are_copied_from_the_last_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    (chat_id,) = make_chats("Code")
    app = new_app()
    written: list[str] = []
    async with running(app) as pilot:
        monkeypatch.setattr(app, "write_terminal", written.append)
        await app.chat_screen.flow.open_chat(chat_id)
        app.chat_screen.flow.conversation.turns[-1].content = "```\none\n```\ntext\n```\ntwo\n```\n"
        for text, words in (("two", "2 of 2"), ("one", "1 of 2"), ("two", "2 of 2")):
            await pilot.press("f7")
            await until(pilot, lambda wanted=words: wanted in app.chat_screen.activity.text)
            assert written[-1] == terminal.osc52(text, {})


async def test_save_to_a_file_never_overwrites(tmp_path: Path) -> None:
    (chat_id,) = make_chats("Save")
    target = tmp_path / "answer.md"
    app = new_app()
    async with running(app) as pilot:
        await app.chat_screen.flow.open_chat(chat_id)
        for expected in ("Saved to", "was not written"):
            await pilot.press("ctrl+s")
            await screen_is(pilot, "TextDialog")
            await pilot.press("ctrl+u", *keys(str(target)), "enter")
            await until(pilot, lambda wanted=expected: wanted in app.chat_screen.activity.text)
    assert "Answer about Save" in target.read_text()


async def test_the_editor_writes_the_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "more text\\n" >> "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    app = new_app()
    async with running(app) as pilot:
        await pilot.press(*keys("start "))
        monkeypatch.setattr(type(app._driver), "can_suspend", property(lambda _: True))
        await pilot.press("f6")
        await until(pilot, lambda: app.chat_screen.composer.text == "start more text")


def test_osc52_is_wrapped_and_limited() -> None:
    assert terminal.osc52("hi", {}) == "\x1b]52;c;aGk=\x07"
    assert "\x1bPtmux;\x1b\x1b]52;c;aGk=\x07\x1b\\" in (terminal.osc52("hi", {"TMUX": "x"}) or "")
    assert (terminal.osc52("hi", {"TERM": "screen"}) or "").startswith("\x1bP\x1b]52")
    assert terminal.osc52("x" * (terminal.OSC52_LIMIT + 1), {}) is None


def test_code_blocks_and_commands() -> None:
    text = "Do:\n```python\nx = 1\n```\nthen\n```bash\n# first\n$ make demo\nbuilt\n```\n"
    assert code_blocks(text) == [("python", "x = 1"), ("bash", "# first\n$ make demo\nbuilt")]
    assert last_command(text) == "make demo"
    assert last_command("no code") is None


def test_only_text_is_attached(tmp_path: Path) -> None:
    binary = tmp_path / "b"
    binary.write_bytes(b"a\0b")
    for path, words in ((binary, "not a text file"), (tmp_path, "is a folder"), (tmp_path / "nope", "does not exist")):
        with pytest.raises(ValueError, match=words):
            read_text_file(path)


def test_colours_of_terminals() -> None:
    assert terminal.colours({"NO_COLOR": "", "TERM": "xterm"}) == "none"
    assert terminal.colours({"TERM": "linux"}) == "16"
    assert terminal.colours({"TERM": "xterm-256color"}) == "256"
    assert terminal.colours({"TERM": "xterm", "COLORTERM": "truecolor"}) == "truecolor"


async def test_a_screen_that_is_closed_while_it_looks_something_up_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, load = threading.Event(), catalogue.load_catalogue

    def slowly() -> object:
        begun.set()
        time.sleep(1)
        return load()

    monkeypatch.setattr(catalogue, "load_catalogue", slowly)
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("ctrl+o")
        await until(pilot, begun.is_set)
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat_screen)
        await settle(pilot, 2)
        assert not app._notifications


@pytest.mark.parametrize("opened_by", ["the app", "a worker"])
async def test_a_timer_of_a_closed_screen_doesn_t_end_the_app(opened_by: str) -> None:
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("f1")
        await screen_is(pilot, "HelpScreen")
        screen = app.screen
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat_screen)
        with screen._context():  # where a timer of it runs that was due already
            if opened_by == "a worker":  # then in that one's context, too
                active_worker.set(app.chat_screen.run_worker(asyncio.sleep(0)))
            app._handle_exception(NoMatches("its widgets are gone"))
        assert app._exception is None
        await pilot.press("a")
        assert app.chat_screen.composer.text == "a"


async def test_what_can_t_be_kept_is_said_and_not_lost(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: the draft goes along into the next chat, and a choice says that it won't last."""
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Kept")
        history.add_message(chat.id, "user", "a")
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app) as pilot:
        await until(pilot, lambda: app.chat_screen.flow.conversation.id == chat.id)

        def full(*_: object) -> None:
            raise HistoryError("There is no room left on the disk.")

        store = await app.chat_screen.history()
        monkeypatch.setattr(store, "set_draft", full)
        app.chat_screen.composer.set_text("half a question")
        await pilot.press("ctrl+x", "n")
        await until(pilot, lambda: app.chat_screen.flow.conversation.id is None)
        await until(pilot, lambda: "no room left" in app.chat_screen.activity.text)
        assert app.chat_screen.composer.text == "half a question"
        (home / "state").mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(paths, "chosen_file", lambda: Path("/proc/nowhere/chosen.json"))
        assert app.choose_theme("paper")
        await until(pilot, lambda: any("lasts until you quit" in n.message for n in app._notifications))
