"""The / commands, prompts of one's own, named sets of keys, and what lasts over a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from flashmoe import paths
from flashmoe.config.chosen import choose, read_chosen
from flashmoe.history import History
from tests.tui_support import home, keys, new_app, running, screen_is, send, settle, shown, until
from tui import keymap
from tui.app import AppOptions, FlashmoeApp
from tui.chat.prompts import OwnPrompt, prompts_dir
from tui.key_table import KEYS, SETS
from tui.screens.chat.commands import COMMANDS
from tui.texts import fitting, server_in

__all__ = ["home"]


def own_prompt(name: str, text: str) -> None:
    paths.ensure_dir(prompts_dir())
    (prompts_dir() / name).write_text(text)


async def test_every_command_does_something(home: Path) -> None:
    app = new_app()
    async with running(app) as pilot:
        await settle(pilot)
        for command in COMMANDS:
            if command.action:
                name = command.action.removeprefix("app.").split("(")[0]
                owner = app if command.action.startswith("app.") else app.chat_screen
                assert hasattr(owner, f"action_{name}"), command.name


async def test_commands_are_offered_as_they_are_typed_and_a_part_runs_the_marked_one() -> None:
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("slash")
        await until(pilot, lambda: "/model NAME" in shown(app))
        await pilot.press(*"he")
        await until(pilot, lambda: "/model" not in shown(app) and "/help" in shown(app))
        await pilot.press("enter")
        await screen_is(pilot, "HelpScreen")
        await pilot.press("escape")
        await pilot.press("slash", "escape")
        await until(pilot, lambda: "/model NAME" not in shown(app))
        assert app.chat_screen.composer.text == "/"


async def test_what_is_no_command_is_said_and_stays() -> None:
    app = new_app()
    async with running(app) as pilot:
        await send(pilot, "/nosuch thing")
        await until(pilot, lambda: "is not a command" in app.chat_screen.activity.text)
        assert app.chat_screen.composer.text == "/nosuch thing"
        await send(pilot, "/theme nosuch")
        await until(pilot, lambda: "is not a theme" in app.chat_screen.activity.text)


async def test_a_system_prompt_a_model_that_is_not_there_and_an_export(tmp_path: Path) -> None:
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Routers")
        history.add_message(chat.id, "user", "How does a router choose?")
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app) as pilot:
        await until(pilot, lambda: app.chat_screen.flow.conversation.id == chat.id)
        await send(pilot, "/system Answer in one word.")
        await until(pilot, lambda: app.chat_screen.flow.conversation.settings.system_prompt == "Answer in one word.")
        await send(pilot, "/model surely-not-here")
        await until(pilot, lambda: "No model on this machine is called" in app.chat_screen.activity.text)
        await send(pilot, f"/export {tmp_path / 'chat.md'}")
        await until(pilot, lambda: (tmp_path / "chat.md").exists())
        assert "How does a router choose?" in (tmp_path / "chat.md").read_text()


async def test_a_prompt_of_ones_own_is_filled_in(home: Path) -> None:
    own_prompt("review.txt", "Review this {{language}} code:\n\n{{input}}\n")
    own_prompt("new.txt", "a name that a command has")
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("slash")
        await until(pilot, lambda: len(app.chat_screen.composer.offers) == len(COMMANDS) + 1)
        app.chat_screen.composer.set_text("/review x = 1")
        await pilot.press("enter")
        await screen_is(pilot, "TextDialog")
        await pilot.press(*keys("Python"), "enter")
        await until(pilot, lambda: app.chat_screen.composer.text == "Review this Python code:\n\nx = 1")


def test_what_follows_a_prompt_without_a_place_for_it_is_put_behind_it() -> None:
    assert OwnPrompt("a", "Be brief.\n").filled({"input": "Why?"}) == "Be brief.\n\nWhy?"
    assert OwnPrompt("a", "{{ x }} and {{x}}").places == ["x"]
    assert OwnPrompt("a", "{{x}} {{y}}").filled({"x": "{{y}}", "y": "1"}) == "{{y}} 1"


@pytest.mark.parametrize("name", SETS)
def test_no_set_of_keys_gives_a_key_two_meanings(name: str) -> None:
    found = keymap.resolve({"set": name})
    assert not found.problems
    assert keymap._first_clash(found.keys, dict.fromkeys(found.keys, "")) is None
    assert set(SETS[name]) <= {spec.id for spec in KEYS}


async def test_the_classic_keys_are_chosen_work_and_last() -> None:
    app = new_app()
    async with running(app) as pilot:
        await send(pilot, "/keys classic")
        await until(pilot, lambda: app.keymap.set == "classic")
        await until(pilot, lambda: "^N new" in shown(app))
        await pilot.press("ctrl+p")
        await screen_is(pilot, "CommandPalette")
    app = new_app()
    assert app.keymap.set == "classic"
    app = FlashmoeApp(AppOptions(measure=False), _configured("ui: {keys: {set: standard}}"))
    assert app.keymap.set == "standard"  # the file wins


async def test_theme_monitor_and_order_last_over_a_restart(home: Path) -> None:
    app = new_app()
    async with running(app, (120, 36)) as pilot:
        await send(pilot, "/theme paper")
        await until(pilot, lambda: app.theme == "paper")
        await pilot.press("f2")
        await until(pilot, lambda: app.chat_screen.has_class("-folded"))
        await pilot.press("ctrl+o")
        await screen_is(pilot, "ModelsScreen")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: read_chosen().sort == "size")
    again = new_app()
    assert again.theme == "paper"
    async with running(again, (120, 36)) as pilot:
        assert again.chat_screen.has_class("-folded")
    configured = FlashmoeApp(AppOptions(measure=False), _configured("ui: {theme: ember, monitor: shown}"))
    assert configured.theme == "ember"
    async with running(configured, (120, 36)):
        assert not configured.chat_screen.has_class("-folded")
    assert not paths.config_file().exists() or "paper" not in paths.config_file().read_text()


def test_a_broken_file_of_choices_chooses_nothing(home: Path) -> None:
    choose(theme="paper")
    choose(keys="classic")
    assert (read_chosen().theme, read_chosen().keys) == ("paper", "classic")
    for content in (b"{", b"[]", b'{"theme": 3}', b"\xff\xfe"):
        paths.chosen_file().write_bytes(content)
        assert read_chosen().theme is None
    new_app()


def _configured(text: str):  # type: ignore[no-untyped-def]
    from flashmoe.config.load import load_config

    paths.ensure_dir(paths.config_file().parent)
    paths.config_file().write_text(text)
    return load_config()


async def test_what_was_told_of_a_key_goes_again() -> None:
    app = new_app()
    async with running(app, (80, 24)) as pilot:
        await pilot.press("ctrl+x", "ctrl+q")
        await until(pilot, lambda: "^X ^Q" in shown(app))
        await until(pilot, lambda: "^X ^Q" not in shown(app))


def test_a_server_s_address_is_told_from_a_page_of_the_hub() -> None:
    assert server_in(" http://127.0.0.1:8080/v1 ") == "http://127.0.0.1:8080/v1"
    assert server_in("http://host:8080") == "http://host:8080"
    for other in ("http://[", "https://huggingface.co/owner/name", "host:8080", "http://a b/v1", "demo"):
        assert server_in(other) is None


def test_a_long_line_is_cut_between_words_and_by_columns() -> None:
    assert fitting("Why is a model slow when it is larger", 34) == "Why is a model slow when it is…"
    assert fitting("漢字漢字漢字", 7) == "漢字漢…"
    assert fitting("Supercalifragilistic word", 10) == "Supercali…"
    assert fitting("short", 10) == "short"
    assert fitting("one two\x1b[2J", 40) == "one two␛[2J"


@pytest.mark.parametrize("by_command", [True, False])
async def test_a_model_is_switched_to_a_server_by_its_address(by_command: bool) -> None:
    """In a command and in the models screen, as on the command line."""
    app = new_app()
    async with running(app) as pilot:
        if by_command:
            await send(pilot, "/model http://127.0.0.1:9/v1")
        else:
            await pilot.press("ctrl+o")
            await screen_is(pilot, "ModelsScreen")
            app.screen.query_one(Input).value = "http://127.0.0.1:9/v1"
            await pilot.press("enter")
        await until(pilot, lambda: "No server answers at 127.0.0.1:9" in app.chat_screen.activity.text)


async def test_what_is_typed_behind_an_own_prompt_fills_its_first_place() -> None:
    own_prompt("explain.txt", "Explain {{thing}} to a {{person}}.")
    app = new_app()
    async with running(app) as pilot:
        await send(pilot, "/explain KV cache")
        await screen_is(pilot, "TextDialog")
        assert "person:" in shown(app)
        await pilot.press(*"child", "enter")
        await until(pilot, lambda: app.chat_screen.composer.text == "Explain KV cache to a child.")
