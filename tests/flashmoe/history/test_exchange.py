"""Export and import: what goes out comes back, and hostile files are refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flashmoe.history import ChatSettings, Figures, History, HistoryError
from flashmoe.history.exchange import import_json, to_json_text, to_markdown


def filled(path: Path) -> History:
    history = History(path)
    chat = history.create_chat(model="qwen", settings=ChatSettings(system_prompt="Be brief."))
    question = history.add_message(chat.id, "user", "How?")
    for text in ("First ```code``` answer", "Second answer"):
        writer = history.start_answer(chat.id, parent_id=question.id, model="qwen")
        writer.add("hm", thinking=True)
        writer.add(text)
        writer.finish("stop", Figures(completion_tokens=5, decode_s=1.0, tok_s=5.0, hit_rate=0.5))
    history.set_pinned(chat.id, True)
    return history


def shape(history: History, chat_id: int) -> list[tuple[Any, ...]]:
    messages = history.all_messages(chat_id)
    index = {message.id: i for i, message in enumerate(messages)}
    return [
        (m.role, m.content, m.thinking, m.status, m.model, m.figures, m.created, index.get(m.parent_id or -1))
        for m in messages
    ]  # fmt: skip


def test_json_brings_back_every_branch(tmp_path: Path) -> None:
    with filled(tmp_path / "a.db") as one, History(tmp_path / "b.db") as two:
        text = to_json_text(one, [1])
        (chat,) = import_json(two, text)
        assert shape(two, chat.id) == shape(one, 1)
        assert [m.content for m in two.path(chat.id)] == [m.content for m in one.path(1)]
        before = one.chat(1)
        assert (chat.title, chat.pinned, chat.settings, chat.uid) == (
            before.title, before.pinned, before.settings, before.uid,
        )  # fmt: skip
        assert import_json(two, text) == []  # it is here already
        assert two.count() == 1
        assert len(two.search("second ans")) == 1


def test_what_the_model_is_no_longer_shown_goes_along(tmp_path: Path) -> None:
    with filled(tmp_path / "a.db") as one, History(tmp_path / "b.db") as two:
        path = one.path(1)
        one.cut_context(path[1].id, path[0].id, summary="line\nline", model="qwen")
        text = to_json_text(one, [1])
        (chat,) = import_json(two, text)
        cut = two.context_cut(chat.leaf)
        assert cut is not None
        assert cut.upto_id == two.path(chat.id)[0].id
        assert (cut.summary, cut.model) == ("line\nline", "qwen")
        markdown = to_markdown(two, chat.id)
        assert "shown this summary of the messages above" in markdown
        assert "> line\n> line" in markdown
        for message, upto in ((0, 1), (2, 1), (1, 7), (-1, -1)):  # not on the way; no such message
            data = json.loads(text)
            data["chats"][0]["uid"] = "other"
            data["chats"][0]["cuts"][0] |= {"message": message, "upto": upto}
            with pytest.raises(HistoryError, match="leaves out messages"):
                import_json(two, json.dumps(data))


def test_markdown_shows_the_branch_with_its_figures(tmp_path: Path) -> None:
    with filled(tmp_path / "a.db") as history:
        text = to_markdown(history, 1)
        for part in ("# How?", "## You", "## qwen", "Second answer", "variant 2 of 2", "5.0 tok/s", "Be brief.", "hm"):
            assert part in text
        assert "First" not in text
        assert "hm" not in to_markdown(history, 1, thinking=False)


def test_plain_messages_become_a_chat(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    with History(tmp_path / "a.db") as history:
        for data in (messages, {"title": "T", "messages": messages}):
            (chat,) = import_json(history, json.dumps(data))
            assert [m.content for m in history.path(chat.id)] == ["hi", "hello"]
        assert history.chat(2).title == "T"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1]", "3", "{}", '{"format": "other"}', '{"format": "flashmoe-chats", "version": 2, "chats": []}',
        '{"format": "flashmoe-chats", "version": 1, "chats": [{"messages": [{"role": "user"}]}]}',
        '{"format": "flashmoe-chats", "version": 1, "chats": [{"messages": [{"role":"u","content":"x","parent":0}]}]}',
        '{"format": "flashmoe-chats", "version": 1, "chats": [{"leaf": 5, "messages": []}]}',
        '[{"role": "user"}]', "[" * 100_000,
    ],
)  # fmt: skip
def test_bad_files_are_refused_and_add_nothing(tmp_path: Path, text: str) -> None:
    with History(tmp_path / "a.db") as history:
        with pytest.raises(HistoryError):
            import_json(history, text)
        assert history.count() == 0
