"""The history: a tree of messages, search, trash, and answers that survive the death of everything."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.interface import Sampling, Usage
from flashmoe.history import Attachment, ChatSettings, Figures, History, HistoryError
from flashmoe.history.schema import MIGRATIONS, _statements


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.db"


@pytest.fixture
def history(path: Path) -> Iterator[History]:
    with History(path) as opened:
        assert opened.problem is None
        yield opened


def answer(history: History, chat_id: int, text: str, **options: int) -> int:
    writer = history.start_answer(chat_id, **options)
    writer.add(text)
    return writer.finish("stop").id


def texts(history: History, chat_id: int) -> list[str]:
    return [message.content for message in history.path(chat_id)]


# ---- chats and messages


def test_a_chat_keeps_everything(path: Path) -> None:
    settings_ = ChatSettings(system_prompt="Be kind.", sampling=Sampling(temperature=0.1), thinking=False)
    with History(path) as history:
        chat = history.create_chat(model="qwen", model_path="/m.gguf", settings=settings_)
        history.add_message(chat.id, "user", "What is\n an expert?", attachments=[Attachment("a.txt", "hello")])
        writer = history.start_answer(chat.id, model="qwen")
        writer.add("let me see", thinking=True)
        writer.add("A part of ")
        writer.add("a layer.")
        usage = Usage(prompt_tokens=9, reused_tokens=0, completion_tokens=8, prefill_s=1.0, decode_s=2.0, hit_rate=0.8)
        writer.finish("stop", Figures.from_usage(usage, backend="stream"))
        history.set_draft(chat.id, "and then?")
    with History(path) as history:
        (chat,) = history.chats()
        assert (chat.title, chat.settings, chat.draft, chat.messages) == (
            "What is an expert?",
            settings_,
            "and then?",
            2,
        )
        question, reply = history.path(chat.id)
        assert question.prompt_text.startswith("File a.txt:")
        assert "hello" in question.prompt_text
        assert (reply.content, reply.thinking, reply.status) == ("A part of a layer.", "let me see", "done")
        assert reply.figures is not None
        assert (reply.figures.tok_s, reply.figures.hit_rate) == (4.0, 0.8)
        assert history.recent_prompts() == ["What is\n an expert?"]


def test_variants_are_walked_and_each_branch_comes_back_as_it_was(history: History) -> None:
    chat = history.create_chat().id
    question = history.add_message(chat, "user", "q1").id
    first = answer(history, chat, "a1")
    history.add_message(chat, "user", "q2 below a1")
    answer(history, chat, "a2 below a1")
    second = answer(history, chat, "b1", parent_id=question)
    assert texts(history, chat) == ["q1", "b1"]
    assert [(m.variant, m.variants) for m in history.path(chat)] == [(1, 1), (2, 2)]
    back = history.step_variant(second, -1)
    assert [m.content for m in back] == ["q1", "a1", "q2 below a1", "a2 below a1"]
    assert [m.content for m in history.step_variant(first, -1)] == [m.content for m in back]
    history.show(history.path(chat)[2].id)
    assert [m.content for m in history.step_variant(first, 1)] == ["q1", "b1"]
    # editing the first question is a second top
    history.add_message(chat, "user", "q1 edited", parent_id=None)
    assert texts(history, chat) == ["q1 edited"]
    assert [m.content for m in history.step_variant(history.path(chat)[0].id, -1)] == ["q1", "b1"]
    assert len(history.all_messages(chat)) == 6


def test_the_branch_that_was_shown_last_comes_back_not_the_newest(history: History) -> None:
    chat = history.create_chat().id
    question = history.add_message(chat, "user", "q").id
    first = answer(history, chat, "a1")
    older = history.add_message(chat, "user", "older", parent_id=first).id
    history.add_message(chat, "user", "newer", parent_id=first)
    history.step_variant(history.path(chat)[-1].id, -1)
    second = answer(history, chat, "a2", parent_id=question)
    assert [m.id for m in history.step_variant(second, -1)] == [question, first, older]


def test_rewind_shows_less_and_deletes_nothing(history: History) -> None:
    chat = history.create_chat().id
    question = history.add_message(chat, "user", "q").id
    answer(history, chat, "a")
    assert [m.content for m in history.rewind(question, chat)] == ["q"]
    assert history.rewind(None, chat) == []
    assert len(history.all_messages(chat)) == 2


def test_a_continued_answer_goes_on_in_place_and_its_figures_add_up(history: History) -> None:
    chat = history.create_chat().id
    history.add_message(chat, "user", "q")
    writer = history.start_answer(chat)
    writer.add("one ")
    partial = writer.finish("cancelled", Figures(completion_tokens=2, decode_s=1.0))
    assert partial.status == "partial"
    writer = history.continue_answer(partial.id)
    writer.add("two")
    done = writer.finish("stop", Figures(completion_tokens=4, decode_s=2.0))
    assert (done.id, done.content, done.status) == (partial.id, "one two", "done")
    assert done.figures is not None
    assert (done.figures.completion_tokens, done.figures.tok_s) == (6, 2.0)
    with pytest.raises(HistoryError, match="Only an answer"):
        history.continue_answer(history.path(chat)[0].id)


def test_rename_pin_delete_restore_purge(history: History) -> None:
    first, second = history.create_chat(title="one"), history.create_chat(title="two")
    history.set_pinned(first.id, True)
    history.rename(second.id, "  new\nname ")
    assert [chat.title for chat in history.chats()] == ["one", "new name"]
    history.delete_chat(first.id)
    assert [chat.id for chat in history.chats()] == [second.id]
    assert [chat.id for chat in history.chats(deleted=True)] == [first.id]
    history.restore_chat(first.id)
    assert [chat.id for chat in history.chats()] == [first.id, second.id]
    history.delete_chat(second.id)
    assert history.purge(older_than_s=3600) == []
    assert history.purge() == [second.uid]
    with pytest.raises(HistoryError, match="no chat"):
        history.chat(second.id)
    with pytest.raises(HistoryError, match="no chat"):
        history.rename(999, "x")


def test_housekeeping_keeps_pinned_chats(history: History) -> None:
    old, pinned, fresh = (history.create_chat(title=t) for t in ("old", "pinned", "fresh"))
    for chat in (old, pinned, fresh):
        history.add_message(chat.id, "user", "x")
    history.set_pinned(pinned.id, True)
    history._db.execute("UPDATE chats SET updated = updated - 864000 WHERE id IN (?, ?)", (old.id, pinned.id))
    history.housekeep(keep_days=5, trash_days=30)
    assert {chat.title for chat in history.chats()} == {"pinned", "fresh"}
    assert [chat.title for chat in history.chats(deleted=True)] == ["old"]


def test_messages_of_another_chat_are_refused(history: History) -> None:
    one, two = history.create_chat().id, history.create_chat().id
    message = history.add_message(one, "user", "x").id
    with pytest.raises(HistoryError, match="another chat"):
        history.add_message(two, "user", "y", parent_id=message)
    with pytest.raises(HistoryError, match="another chat"):
        history.rewind(message, two)
    assert history.path(two) == []


# ---- search


def test_search_as_you_type(history: History) -> None:
    chat = history.create_chat().id
    history.add_message(chat, "user", "How do routers choose?")
    reply = answer(history, chat, "The *router* scores every expert; the café stays open. 专家混合模型")
    other = history.create_chat(title="Router table")
    for typed in ("r", "rou", "router sc", "SCORES rou", "cafe", "专家", "expert; the"):
        hits = history.search(typed)
        assert reply in [hit.message_id for hit in hits], typed
    (title_hit,) = history.search("router tab")
    assert (title_hit.chat.id, title_hit.message_id) == (other.id, None)
    hit = next(hit for hit in history.search("scores") if hit.message_id == reply)
    assert [hit.snippet[a:b] for a, b in hit.spans] == ["scores"]
    for nothing in ("", "  ", "*", '"', "zzz", "scores zzz", "%"):
        assert history.search(nothing) == []
    history.delete_chat(chat)
    assert [hit.chat.id for hit in history.search("router")] == [other.id]


def test_the_index_follows_every_change(history: History) -> None:
    chat = history.create_chat(title="alpha").id
    writer = history.start_answer(chat)
    writer.add("zebra")
    writer.flush()
    assert history.search("zebra") == []  # not before it ends
    message = writer.finish("cancelled")
    assert len(history.search("zebra")) == 1
    writer = history.continue_answer(message.id)
    assert history.search("zebra") == []
    writer.add(" quagga")
    writer.finish("stop")
    assert len(history.search("zebra quagga")) == 1
    history.rename(chat, "beta")
    assert history.search("alpha") == []
    assert len(history.search("beta")) == 1
    history.delete_chat(chat)
    history.purge()
    for table in ("messages_fts", "chats_fts"):
        history._db.execute(f"INSERT INTO {table} ({table}, rank) VALUES ('integrity-check', 1)")


OPERATORS = ['a" OR b', "NEAR(a b)", "content:x", "-a", "^a", "a AND NOT b", "(("]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.text(alphabet=st.characters(), max_size=40) | st.sampled_from(OPERATORS))
def test_nothing_typed_breaks_the_search(history: History, query: str) -> None:
    assert isinstance(history.search(query), list)


def test_text_that_no_file_can_hold_is_kept(history: History) -> None:
    chat = history.create_chat(title="t\ud800").id
    history.add_message(chat, "user", "a\x00b \ud800 \x1b[31m", attachments=[Attachment("n\udfff", "x\ud800")])
    history.set_settings(chat, ChatSettings(system_prompt="s\ud800"))
    (message,) = history.path(chat)
    assert message.content == "a\x00b \ufffd \x1b[31m"
    assert message.attachments[0].text == "x\ufffd"
    assert history.chat(chat).settings.system_prompt == "s\ufffd"


# ---- durability


def test_tokens_are_on_disk_soon(path: Path, history: History) -> None:
    chat = history.create_chat().id
    writer = history.start_answer(chat)
    writer.add("kept")
    deadline = time.monotonic() + 300
    with sqlite3.connect(path) as other:
        while time.monotonic() < deadline:
            if other.execute("SELECT content FROM messages").fetchone()[0] == "kept":
                break
            time.sleep(0.05)
        else:
            pytest.fail("not on disk")
    writer.finish("stop")


def test_a_flush_never_writes_older_text_over_a_finished_answer(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = history.start_answer(history.create_chat().id)
    writer.add("old")
    in_between = threading.Event()
    transaction = history.transaction

    def slow() -> Any:
        if threading.current_thread() is not threading.main_thread():
            in_between.set()
            time.sleep(0.3)  # the flush has its text and has not written it yet
        return transaction()

    monkeypatch.setattr(history, "transaction", slow)
    flush = threading.Thread(target=writer.flush)
    flush.start()
    assert in_between.wait(300)
    writer.add(" and new")
    writer.finish("stop")
    flush.join()
    assert history.message(writer.message_id).content == "old and new"


def test_a_full_disk_is_said_and_loses_nothing(history: History) -> None:
    chat = history.create_chat().id
    writer = history.start_answer(chat)
    (pages,) = history._db.execute("PRAGMA page_count").fetchone()
    history._db.execute(f"PRAGMA max_page_count = {pages}")
    writer.add("x" * 200_000)
    with pytest.raises(HistoryError, match="no room left"):
        writer.flush()
    deadline = time.monotonic() + 300
    while history.problem is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert history.problem is not None
    assert "no room left" in history.problem
    with pytest.raises(HistoryError, match="no room left"):
        writer.finish("stop")
    history._db.execute("PRAGMA max_page_count = 1000000")
    deadline = time.monotonic() + 300
    while history.problem is not None or history._open_writers():
        assert time.monotonic() < deadline
        time.sleep(0.05)  # the end that could not be written is written as soon as there is room
    kept = history.message(writer.message_id)
    assert (len(kept.content), kept.status, kept.finish_reason) == (200_000, "done", "stop")


def test_the_flushing_thread_ends_when_nothing_is_written(history: History) -> None:
    chat = history.create_chat().id
    writer = history.start_answer(chat)
    thread = history._flusher
    assert thread is not None
    writer.finish("stop")
    thread.join(300)
    assert not thread.is_alive()
    writer = history.start_answer(chat)
    writer.add("x")
    assert history._flusher is not None
    assert history._flusher.is_alive()
    writer.finish("stop")


CHILD = """
import sys, time
from pathlib import Path
from flashmoe.history import History
history = History(Path(sys.argv[1]))
chat = history.create_chat().id
history.add_message(chat, "user", "q")
writer = history.start_answer(chat)
for i in range(10**6):
    writer.add(f"t{i} ")
    print(i, flush=True)
    time.sleep(0.02)
"""


def test_a_killed_process_loses_nothing_older_than_two_seconds(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen: list[tuple[float, int]] = []
        for line in child.stdout:
            seen.append((time.monotonic(), int(line)))
            if seen[-1][0] - seen[0][0] > 3.5:  # from the first line on: a busy machine starts a child in seconds
                break
        with History(path) as history:  # a second instance leaves a living one's answer alone
            assert history.path(1)[-1].status == "streaming"
        killed = time.monotonic()
        child.kill()
    with History(path) as history:
        _, reply = history.path(1)
        assert (reply.status, reply.finish_reason) == ("partial", "died")
        must_have = max((number for when, number in seen if when < killed - 2.0), default=-1)
        assert must_have > 0
        assert f"t{must_have} " in reply.content
        assert len(history.search(f"t{must_have}")) == 1
        history.continue_answer(reply.id).finish("stop")


def test_two_instances_write_at_once(path: Path) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with History(path) as history:
                assert history.problem is None
                chat = history.create_chat(title=name).id
                for i in range(40):
                    history.add_message(chat, "user", f"{name} {i}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"n{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with History(path) as history:
        assert [chat.messages for chat in history.chats()] == [40] * 4


def test_changes_of_another_instance_are_noticed(path: Path) -> None:
    with History(path) as one, History(path) as two:
        one.changed_elsewhere()
        assert not one.changed_elsewhere()
        one.create_chat()
        assert not one.changed_elsewhere()
        two.create_chat()
        assert one.changed_elsewhere()
        assert not one.changed_elsewhere()


def test_closing_ends_open_answers(path: Path) -> None:
    history = History(path)
    chat = history.create_chat().id
    history.start_answer(chat).add("half")
    history.close()
    history.close()
    with History(path) as again:
        (message,) = again.path(chat)
        assert (message.content, message.status) == ("half", "partial")
    with pytest.raises(HistoryError, match="closed"):
        history.chats()


async def test_from_asyncio(history: History) -> None:
    chat = await history.in_thread(history.create_chat, title="async")
    hits = await asyncio.gather(*(history.in_thread(history.search, "asy") for _ in range(5)))
    assert [hit[0].chat.id for hit in hits] == [chat.id] * 5


# ---- where nothing can be kept


def test_no_folder_to_write_falls_back_to_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "file"))
    with History() as history:
        assert history.problem is not None
        assert "FLASHMOE_HOME" in history.problem
        assert not history.persistent
        chat = history.create_chat().id
        answer(history, chat, "still works")
        assert texts(history, chat) == ["still works"]


@pytest.mark.parametrize("damage", ["garbage", "torn", "newer"])
def test_a_bad_database_is_named_and_left_alone(path: Path, damage: str) -> None:
    with History(path) as history:
        for i in range(200):
            history.add_message(history.create_chat().id, "user", f"text {i} " * 50)
    if damage == "garbage":
        path.write_bytes(b"this is not a database" * 1000)
    elif damage == "torn":
        raw = bytearray(path.read_bytes())
        raw[100:4096] = b"\xff" * 3996
        path.write_bytes(raw)
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with History(path) as history:
        assert history.problem is not None
        assert "chats.db" in history.problem
        assert not history.persistent
        history.create_chat()
    assert path.read_bytes() == before


def test_a_database_that_is_read_only_shows_its_chats(path: Path) -> None:
    with History(path) as history:
        history.create_chat(title="readable")
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    # Root may write anything, so a permission can't be tested as root: a lock that never ends stands in for it.
    with sqlite3.connect(path, isolation_level=None) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flashmoe.history.connection.BUSY_MS", 50)
            with History(path) as history:
                assert history.problem is not None
                assert "another instance" in history.problem
                assert [chat.title for chat in history.chats()] == ["readable"]
                history.create_chat(title="in memory")
        blocker.execute("ROLLBACK")
    with History(path) as history:
        assert [chat.title for chat in history.chats()] == ["readable"]


# ---- what the model is no longer shown


def test_a_cut_holds_below_its_message_and_on_no_other_branch(path: Path) -> None:
    with History(path) as history:
        chat = history.create_chat().id
        q1 = history.add_message(chat, "user", "q1").id
        a1 = answer(history, chat, "a1")
        q2 = history.add_message(chat, "user", "q2").id
        a2 = answer(history, chat, "a2")
        cut = history.cut_context(a2, a1, summary="they met", model="qwen")
        q3 = history.add_message(chat, "user", "q3").id
        edited = history.add_message(chat, "user", "q3 in other words", parent_id=a2).id
        other = answer(history, chat, "b2", parent_id=q2)
    with History(path) as history:  # it is kept
        for leaf in (a2, q3, edited):
            assert history.context_cut(leaf) == cut
        for leaf in (None, q1, a1, q2, other):
            assert history.context_cut(leaf) is None
        assert (cut.upto_id, cut.summary, cut.model) == (a1, "they met", "qwen")
        # a later one on the same path wins, the deepest before the newest; taking it back brings the earlier one back
        later = history.cut_context(q3, a2)
        again = history.cut_context(a2, q2)
        assert history.context_cut(q3) == later
        assert history.context_cut(edited) == again
        history.undo_cut(later.id)
        history.undo_cut(again.id)
        history.undo_cut(again.id)
        assert history.context_cut(q3) == cut
        with pytest.raises(HistoryError, match="not on the way"):
            history.cut_context(other, a2)
        assert history.cuts_of(chat) == [cut]
        history.delete_chat(chat)
        history.purge()
        assert history.cuts_of(chat) == []


def test_a_database_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path, isolation_level=None) as db:
        for statement in _statements(MIGRATIONS[0]):
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        db.execute("INSERT INTO chats (id, uid, title, created, updated, leaf) VALUES (1, 'u', 'old', 1, 1, 1)")
        db.execute("INSERT INTO messages (id, chat_id, role, content, created) VALUES (1, 1, 'user', 'kept', 1)")
    with History(path) as history:
        assert history.problem is None
        assert texts(history, 1) == ["kept"]
        assert history.context_cut(1) is None
        cut = history.cut_context(1, 1)
        assert history.context_cut(1) == cut
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
