"""What is kept of a chat's prompts goes with the chat, and what others go on from stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.interface import ChatMessage, Finished, GenerateRequest, Sampling
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.prompt_chats import note, take
from backends.llamacpp.prompt_files import forget_chats
from tests.backends.llamacpp.test_prompt_reuse import load
from tests.gguf_factory import make_gguf

SYSTEM = ChatMessage("system", "You help with tools. " * 24)


def ask(model: LlamaModel, chat: str | None, text: str) -> int:
    """How many tokens of the prompt were there already."""
    messages = (SYSTEM, ChatMessage("user", text * 12))
    sampling = Sampling(temperature=0.0, max_tokens=6)
    model.submit(GenerateRequest(id="q", messages=messages, session=chat, sampling=sampling))
    reused = 0
    while model.busy():
        for event in model.step():
            reused += (event.usage.reused_tokens or 0) if isinstance(event, Finished) else 0
    return reused


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe"])
def test_a_deleted_chat_takes_its_own_parts_along(arch: str, tmp_path: Path) -> None:
    path, folder = make_gguf(tmp_path / "m.gguf", arch=arch, n_ctx_train=8192), tmp_path / "kv"
    model = load(path, kv_dir=str(folder))
    for chat, text in (("one", "about the sea "), ("two", "of mountains "), (None, "to an agent ")):
        ask(model, chat, text)
    model.close()
    before = sorted(folder.rglob("*.kv"))
    (answers,) = folder.glob("answers-*.jsonl")
    assert len(answers.read_bytes().splitlines()) == 3
    forget_chats(folder, ["one", "nobody", "../../escape"])
    after = sorted(folder.rglob("*.kv"))
    assert 0 < len(after) < len(before)
    assert len(answers.read_bytes().splitlines()) == 2
    assert len(list((folder / "chats").iterdir())) == 1
    again = load(path, kv_dir=str(folder))
    assert ask(again, "two", "of mountains ") > ask(again, None, "never asked ") > 60
    again.close()
    after = sorted(folder.rglob("*.kv"))
    forget_chats(folder, ["two"])
    left = sorted(folder.rglob("*.kv"))
    assert 2 <= len(left) < len(after)  # the agent's, with the instructions that the chats began with as well


def test_lines_that_say_something_else_name_nothing(tmp_path: Path) -> None:
    note(tmp_path, "c", "../outside", "x")
    note(tmp_path, "c", "a" * 32, "b" * 32)
    note(tmp_path, "c", "answers-" + "0" * 24, "c" * 32)
    (file,) = (tmp_path / "chats").iterdir()
    file.write_bytes(file.read_bytes() + b"\xff\xfe/etc/passwd\n" + b"a" * 33 + b"/" + b"b" * 32)
    assert take(tmp_path, ["c"]) == ({("a" * 32, "b" * 32)}, {("answers-" + "0" * 24, "c" * 32)})
    assert take(tmp_path, ["c"]) == (set(), set())
