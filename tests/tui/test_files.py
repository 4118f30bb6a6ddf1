"""Files in and out of the app: names complete, imports say what they did, a database may be damaged or full."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flashmoe import paths
from flashmoe.history import History
from flashmoe.history.exchange import to_json_text
from tests.tui_support import ask, home, keys, limit, new_app, ready, running, screen_is, shown, slow, until
from tui.screens.dialogs import PathSuggester

__all__ = ["home", "slow"]


async def test_paths_complete_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "alpha.txt").write_text("a")
    (tmp_path / "notes" / ".hidden").write_text("h")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    suggest = PathSuggester().get_suggestion
    assert await suggest("no") == "notes/"
    assert await suggest("notes/") == "notes/alpha.txt"
    assert await suggest("notes/.") is None
    assert await suggest("notes/.h") == "notes/.hidden"
    assert await suggest("~/no") == "~/notes/"
    assert await suggest(f"{tmp_path}/notes/al") == f"{tmp_path}/notes/alpha.txt"
    for nothing in ("", "zzz", "notes/alpha.txt", "/nowhere/x", "\0"):
        assert await suggest(nothing) is None
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("f8")
        await screen_is(pilot, "TextDialog")
        await pilot.press(*"no", "tab", "tab")
        await until(pilot, lambda: app.screen.query_one("Input").value == "notes/alpha.txt")  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: "alpha.txt" in shown(app) and type(app.screen).__name__ == "ChatScreen")


async def test_import_adds_chats_once_and_names_what_is_wrong(tmp_path: Path) -> None:
    with History(tmp_path / "other.db") as other:
        chat = other.create_chat(title="From elsewhere")
        other.add_message(chat.id, "user", "an imported question")
        (tmp_path / "ok.json").write_text(to_json_text(other, [chat.id]))
    (tmp_path / "bad.json").write_text(json.dumps({"format": "else"}))
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("ctrl+t")
        await until(pilot, lambda: "There are no chats yet." in shown(app))
        for name, words in (
            ("ok.json", "1 chat imported."),
            ("ok.json", "You already have"),
            ("bad.json", "neither a flashmoe-tui export"),
            ("none.json", "can't be read"),
        ):
            await pilot.press("ctrl+o")
            await screen_is(pilot, "TextDialog")
            app.screen.query_one("Input").value = str(tmp_path / name)  # type: ignore[attr-defined]
            await pilot.press("enter")
            await until(pilot, lambda wanted=words: wanted in " ".join(re.sub("[│┤╮╯]", " ", shown(app)).split()))
        assert "From elsewhere" in shown(app)
        await pilot.press(*keys("imported"), "enter")
        await until(pilot, lambda: "an imported question" in shown(app))


async def test_a_damaged_database_is_named_and_the_chat_works_in_memory() -> None:
    paths.ensure_dir(paths.chats_db().parent)
    paths.chats_db().write_bytes(b"no database at all" * 500)
    app = new_app()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: any("is damaged" in toast.message for toast in app._notifications))
        history = await app.chat_screen.history()
        assert not history.persistent
        await app.controller.close()
    assert paths.chats_db().read_bytes().startswith(b"no database at all")


async def test_a_disk_that_fills_up_in_mid_answer_is_said_and_nothing_is_lost(slow: Path) -> None:
    app = new_app(slow, n_ctx=16384)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await ready(pilot)
        limit(app, None)
        await ask(pilot, "Go on for long", wait=False)
        flow = app.chat_screen.flow
        await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 5)
        turn, history = flow.turn, await app.chat_screen.history()
        assert turn is not None
        (pages,) = history._db.execute("PRAGMA page_count").fetchone()
        history._db.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite says of a full disk
        more = "x" * 200_000  # as a long answer has it; the tiny model would take minutes
        assert flow._writing is not None
        flow._writing.add([("answer", more)])
        await until(pilot, lambda: any("no room left" in toast.message for toast in app._notifications))
        history._db.execute("PRAGMA max_page_count = 1000000")
        await pilot.press("escape")
        await until(pilot, lambda: not flow.busy)
        await until(pilot, lambda: history.message(turn.id).status != "streaming")
        with History() as other:
            assert other.message(turn.id).content == turn.content
        await app.controller.close()
