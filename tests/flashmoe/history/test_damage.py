"""A history that is damaged, or that somebody else wrote into: what can be read is shown and exported, nothing hangs,
no traceback reaches a terminal, and an import is checked whole before anything is stored."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from flashmoe import figures, paths
from flashmoe.cli import main as cli
from flashmoe.history import History, HistoryError
from flashmoe.history.exchange import import_json, to_json_text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    return tmp_path


def fill(chats: int = 6, messages: int = 8) -> Path:
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        for c in range(chats):
            chat = history.create_chat(title=f"Chat about subject {c}")
            for m in range(messages):
                role = "assistant" if m % 2 else "user"
                history.add_message(chat.id, role, f"word{c} text of message {m} " + "filler " * 60)
    return paths.chats_db()


def change(sql: str, *values: object) -> None:
    with sqlite3.connect(paths.chats_db()) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute(sql, values)


# ---- rows that make no sense -----------------------------------------------------------------------------------------


def test_a_message_that_is_its_own_parent_is_told_and_the_rest_exported(capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    change("UPDATE messages SET parent_id = id WHERE id = 4")
    change("UPDATE messages SET parent_id = 8 WHERE id = 6")  # a circle of several
    for arguments in (["all"], ["all", "--json"]):
        assert cli.main(["chats", "export", *arguments]) == 1
        told = capsys.readouterr()
        assert "Chat 1 is damaged: 2 messages have no place in it" in told.err
        assert "message 7" in told.out  # its newest
        assert "subject 5" in told.out
    assert cli.main(["chats", "export", "1", "--json"]) == 1
    text = capsys.readouterr().out
    with History(paths.data_dir() / "other.db") as other:
        (chat,) = import_json(other, text)
        assert chat.messages == 8


def test_ways_down_and_up_end(home: Path) -> None:
    fill()
    change("UPDATE messages SET parent_id = id, last_leaf = 999 WHERE id = 3")
    with History() as history:
        assert history.path(1)[0].id == 3
        assert history.show(3)[-1].id == 8
        assert history.context_cut(8) is None
        assert history.misplaced(1) == 1
        assert history.misplaced(2) == 0
        history.add_message(1, "user", "on")


@pytest.mark.parametrize("moment", [-1e17, 1e17, "yesterday", b"x", 9e99])
def test_dates_that_make_no_sense_are_unknown(moment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    change("UPDATE chats SET updated = ?, created = ? WHERE id = 2", moment, moment)
    change("UPDATE messages SET created = ?", moment)
    assert cli.main(["chats"]) == 0
    assert "subject 2" in capsys.readouterr().out
    assert cli.main(["chats", "export", "2"]) == 0
    assert "Started –" in capsys.readouterr().out
    with History() as history:
        assert history.chat(2).updated == 0


@pytest.mark.parametrize("column", ["title", "model", "settings", "draft", "leaf", "uid", "pinned"])
def test_any_kind_of_value_in_a_chat(column: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    change(f"UPDATE chats SET {column} = ? WHERE id = 1", b"\xff\xfe\x00{")
    assert cli.main(["chats"]) == 0
    assert "subject 1" in capsys.readouterr().out
    cli.main(["chats", "export", "all"])
    assert "subject 5" in capsys.readouterr().out


@pytest.mark.parametrize("column", ["role", "content", "thinking", "status", "figures", "attachments", "parent_id"])
def test_any_kind_of_value_in_a_message(column: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    change(f"UPDATE messages SET {column} = ? WHERE id IN (2, 3)", b"\xff\xfe\x00{")
    cli.main(["chats", "export", "all", "--json"])
    exported = json.loads(capsys.readouterr().out)["chats"]
    assert len(exported) == 6
    assert len(exported[-1]["messages"]) == 8
    assert cli.main(["chats", "word0"]) in (0, 1)


def test_text_that_is_not_utf8(capsys: pytest.CaptureFixture[str]) -> None:
    fill()
    change("UPDATE chats SET title = CAST(x'616263ff' AS TEXT) WHERE id = 1")
    assert cli.main(["chats"]) == 0
    assert "abc\ufffd" in capsys.readouterr().out


# ---- files that are damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_a_file_with_random_damage_ends_in_a_sentence(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = fill(chats=4, messages=6)
    rng = random.Random(seed)
    data = bytearray(path.read_bytes())
    kind = seed % 4
    if kind == 0:  # single bytes
        for _ in range(rng.choice((1, 5, 50))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:  # a page of another
        a, b = (rng.randrange(len(data) // 4096) * 4096 for _ in range(2))
        data[a : a + 4096] = data[b : b + 4096]
    elif kind == 2:  # a page of nothing, or of noise
        a = rng.randrange(len(data) // 4096) * 4096
        data[a : a + 4096] = rng.choice((bytes(4096), rng.randbytes(4096)))
    else:
        del data[rng.randrange(len(data)) :]
    path.write_bytes(data)
    for command in (["chats"], ["chats", "word1"], ["chats", "export", "all"], ["chats", "export", "all", "--json"]):
        assert cli.main(command) in (0, 1, 3), (seed, command)
        said = capsys.readouterr().err
        assert "unexpected error" not in said, (seed, command, said)
        assert "Traceback" not in said


# ---- imports --------------------------------------------------------------------------------------------------------


def hostile(**chat: Any) -> str:
    base = {"title": "t", "uid": "u", "messages": [{"role": "user", "content": "x"}]}
    return json.dumps({"format": "flashmoe-chats", "version": 1, "chats": [base | {"uid": "good"}, base | chat]})


@pytest.mark.parametrize(
    ("chat", "what"),
    [
        ({"updated": -1e17}, "the date -1e\\+17"),
        ({"created": 1e15}, "the date 1e\\+15"),
        ({"messages": [{"role": "user", "content": "x", "created": 1e300}]}, "the date 1e\\+300"),
        ({"messages": [{"role": "\x1b[2J", "content": "x"}]}, "a message of the role '␛"),
        ({"settings": {"n_ctx": 1 << 40}}, "a context of"),
        ({"uid": "u" * 1000}, "an identifier"),
        ({"messages": [{"role": "user", "content": "x", "parent": 0}]}, "no valid parent"),
    ],
)
def test_an_import_is_refused_whole(chat: dict[str, Any], what: str) -> None:
    with History() as history:
        with pytest.raises(HistoryError, match=what):
            import_json(history, hostile(**chat))
        assert history.count() == 0
        assert history.chats() == []


def test_what_is_exported_can_be_imported(home: Path) -> None:
    fill(chats=2)
    with History() as one, History(home / "b.db") as two:
        assert len(import_json(two, to_json_text(one, [1, 2]))) == 2


# ---- the clock -------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + ahead[0])
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        ahead[0] = 10 * 365 * 86_400.0  # a battery that was empty
        chat = history.create_chat(title="asked ahead of time")
        history.add_message(chat.id, "user", "q")
        writer = history.start_answer(chat.id)
        writer.add("some text")
        ahead[0] = -3600.0  # and back, in mid-answer
        writer.add(" and more")
        writer.finish("stop")
        assert history.housekeep(keep_days=30, trash_days=7) == []
        assert [figures.ago(each.updated, time.time()) for each in history.chats()] == ["just now"]
        history.delete_chat(chat.id)
        ahead[0] = -400 * 86_400.0
        assert history.purge(older_than_s=7 * 86_400) == []
        history.restore_chat(chat.id)
        assert [message.content for message in history.path(chat.id)] == ["q", "some text and more"]


def test_a_time_to_come_is_a_date() -> None:
    assert figures.ago(2_000_000_000.0, 1_000_000_000.0).endswith("2033")
    assert figures.ago(0.0, 1_000_000_000.0) == "–"
