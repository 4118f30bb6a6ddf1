"""A prompt is read once: conversations in turn, shared beginnings, edits, and what is kept on disk."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.interface import ChatMessage, Delta, Failed, Finished, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.checkpoints import MAX_CHECKPOINTS, NEWEST, Checkpoints
from backends.llamacpp.model import LlamaModel
from tests.gguf_factory import make_gguf
from tests.storms import check, make_requests, storm, tokens

GREEDY = Sampling(temperature=0.0, max_tokens=12)
ARCHITECTURES = ["qwen3moe", "qwen35moe", "gpt-oss", "qwen3next", "granitehybrid", "gemma4"]
SLACK = 64
"""Tokens that may be computed again at a turn: what opens an answer, and the answer where it is rendered otherwise."""
PREAMBLE = ChatMessage("system", "You help with tools. " * 24)


def load(path: Path, **more: Any) -> LlamaModel:
    request = LoadRequest(path=str(path), n_threads=1, **{"n_ctx": 4096, "n_seq_max": 2, **more})
    return MmapBackend().load(request, lambda _: True)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {arch: make_gguf(folder / f"{arch}.gguf", arch=arch, n_ctx_train=8192) for arch in ARCHITECTURES}


@pytest.fixture(params=[*ARCHITECTURES[:3], *(pytest.param(a, marks=pytest.mark.slow) for a in ARCHITECTURES[3:])])
def path(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Path:
    return paths[request.param]


def run(model: LlamaModel, *requests: GenerateRequest) -> dict[str, tuple[str, Finished]]:
    texts: dict[str, str] = {}
    ends: dict[str, Finished] = {}
    for request in requests:
        model.submit(request)
    while model.busy():
        for event in model.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta):
                texts[event.id] = texts.get(event.id, "") + event.text
            elif isinstance(event, Finished):
                ends[event.id] = event
    return {r.id: (texts.get(r.id, ""), ends[r.id]) for r in requests}


def one(model: LlamaModel, messages: list[ChatMessage], judge: LlamaModel | None = None) -> tuple[str, Finished]:
    """The answer; `judge`, which keeps nothing, says whether it is what the prompt gets alone (see `check`)."""
    request = GenerateRequest(id="one", messages=tuple(messages), sampling=GREEDY)
    answer = model.prepare(request)
    model.submit_prepared(answer)
    text, end = "", None
    while model.busy():
        for event in model.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Finished):
                end = event
    assert end is not None
    if judge is not None:
        prompt = tuple(int(t) for t in answer.prompt)
        check(judge, GenerateRequest(id="one", tokens=prompt), answer.generated)
    return text, end


def computed(end: Finished) -> int:
    assert end.usage.prompt_tokens is not None
    assert end.usage.reused_tokens is not None
    return end.usage.prompt_tokens - end.usage.reused_tokens


class Conversation:
    """One that grows, asked of a model that keeps prompts and of one that keeps nothing."""

    def __init__(self, kept: LlamaModel, fresh: LlamaModel, name: str) -> None:
        self.kept, self.fresh, self.name = kept, fresh, name
        self.messages = [PREAMBLE]
        self.before = 0

    def turn(self, text: str) -> Finished:
        self.messages.append(ChatMessage("user", f"{self.name}: {text}"))
        answer, end = one(self.kept, self.messages, self.fresh)
        self.messages.append(ChatMessage("assistant", answer))
        new = (end.usage.prompt_tokens or 0) - self.before
        if self.before:
            assert computed(end) <= new + SLACK, (self.name, text)
        self.before = end.usage.prompt_tokens or 0
        return end


@pytest.fixture
def fresh(path: Path) -> Iterator[LlamaModel]:
    model = load(path, kv_budget_bytes=0)
    yield model
    model.close()


def test_conversations_in_turn_each_read_only_what_is_new(path: Path, fresh: LlamaModel) -> None:
    kept = load(path, n_seq_max=1, kv_budget_bytes=1 << 28)
    talks = [Conversation(kept, fresh, name) for name in ("first", "second", "third")]
    for turn in range(3):
        for talk in talks:
            end = talk.turn(f"question {turn} " + "about it " * 6)
            if talk is not talks[0] and not turn:  # the preamble was read with the first one's question
                assert computed(end) < 120
    kept.close()


def test_a_regenerate_an_edit_and_a_second_answer_to_it(path: Path, fresh: LlamaModel) -> None:
    kept = load(path, n_seq_max=1, kv_budget_bytes=1 << 28)
    talk = Conversation(kept, fresh, "talk")
    for turn in range(4):
        talk.turn(f"question {turn} " + "word " * 30)
    asked = talk.messages[:-1]
    _, end = one(kept, asked, fresh)
    assert computed(end) <= SLACK
    edited = [*talk.messages[:3], ChatMessage("user", "something else")]  # three turns back
    _, end = one(kept, edited, fresh)
    assert computed(end) <= 40 + SLACK
    _, end = one(kept, asked)  # and the branch that was left is still there
    assert computed(end) <= SLACK
    kept.close()


def test_what_is_in_the_cache_without_a_state_gets_it_from_the_store(path: Path, fresh: LlamaModel) -> None:
    kept = load(path, n_seq_max=1, kv_budget_bytes=1 << 28)
    talk = Conversation(kept, fresh, "talk")
    for turn in range(4):
        talk.turn(f"question {turn} " + "word " * 30)
    for sequence in kept._scheduler.book.sequences:  # as after many more turns
        while len(list(sequence.checkpoints)) > 2:  # the first and the last are left
            sequence.checkpoints.drop_one()
    for text in ("something else", "another thing"):
        _, end = one(kept, [*talk.messages[:5], ChatMessage("user", text)], fresh)
        assert computed(end) <= 40 + SLACK
    kept.close()


def test_an_edit_of_a_question_after_a_long_result_reads_the_question_alone(path: Path, fresh: LlamaModel) -> None:
    kept = load(path, n_seq_max=1, kv_budget_bytes=1 << 28)
    talk = Conversation(kept, fresh, "talk")
    talk.turn("question")
    talk.messages.append(ChatMessage("tool", "12:00, " * 40))  # of a call that was cut short: nobody answered to it
    talk.turn("and this?")
    edited = [*talk.messages[:4], ChatMessage("user", "and that one?")]
    _, end = one(kept, edited, fresh)
    assert computed(end) <= 20 + SLACK
    kept.close()


def test_after_a_restart_the_disk_has_it(path: Path, fresh: LlamaModel, tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    kept = load(path, kv_dir=str(folder))
    talks = [Conversation(kept, fresh, name) for name in ("first", "second")]
    for turn in range(3):
        for talk in talks:
            talk.turn(f"question {turn} " + "word " * 20)
    kept.close()
    assert all(p.stat().st_mode & 0o077 == 0 for p in [folder, *folder.rglob("*")])
    restarted = load(path, kv_dir=str(folder))
    for talk in talks:
        talk.kept = restarted
        end = talk.turn("and now?")
        assert end.usage.restored_tokens > 200
    telemetry = restarted.telemetry()
    assert telemetry.restored_tokens > 400
    restarted.close()


def test_a_damaged_file_is_read_anew(paths: dict[str, Path], tmp_path: Path) -> None:
    path, folder = paths["qwen35moe"], tmp_path / "kv"
    messages = [PREAMBLE, ChatMessage("user", "hello")]
    model = load(path, kv_dir=str(folder))
    wanted, _ = one(model, messages)
    model.close()
    files = sorted(folder.rglob("*.kv"))
    assert files
    rng = random.Random(1)
    for damage in ("flip", "cut", "empty", "link", "noise"):
        for file in folder.rglob("*.kv"):
            data = bytearray(file.read_bytes())
            if damage == "flip":
                data[rng.randrange(len(data) // 2, len(data))] ^= 0x40
            elif damage == "cut":
                del data[len(data) // 2 :]
            elif damage == "empty":
                data.clear()
            elif damage == "noise":
                data[:] = rng.randbytes(len(data))
            file.unlink()
            if damage == "link":
                file.symlink_to("/etc/hostname")
            else:
                file.write_bytes(data)
        model = load(path, kv_dir=str(folder))
        text, _ = one(model, messages)
        assert text == wanted, damage  # computed anew, in batches of the same widths
        model.close()


def test_another_model_finds_nothing_of_it(paths: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    other = make_gguf(tmp_path / "other.gguf", n_ctx_train=8192, seed=5)
    messages = [PREAMBLE, ChatMessage("user", "hello")]
    for path, more in ((paths["qwen3moe"], {}), (other, {}), (other, {"n_expert_used": 1})):
        model = load(path, kv_dir=str(folder), **more)
        _, end = one(model, messages)
        assert end.usage.reused_tokens == 0
        model.close()
    for n_ctx in (4096, 2048):  # whatever the size of its context
        model = load(other, kv_dir=str(folder), n_ctx=n_ctx)
        assert computed(one(model, messages)[1]) <= SLACK
        model.close()


def test_a_folder_that_cannot_be_used_costs_nothing_but_the_disk(paths: dict[str, Path], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    model = load(paths["qwen3moe"], kv_dir=str(blocked / "kv"))
    assert one(model, [PREAMBLE, ChatMessage("user", "hello")])[0]
    model.close()


@pytest.mark.parametrize("budget", [1, 1 << 16, 1 << 20])
def test_memory_keeps_to_its_bound(paths: dict[str, Path], budget: int) -> None:
    model = load(paths["qwen35moe"], kv_budget_bytes=budget, n_seq_max=1)
    for i in range(12):
        one(model, [PREAMBLE, ChatMessage("user", f"question {i} " + "word " * 50)])
        store, book = model._store, model._scheduler.book
        assert store is not None
        assert store._memory_bytes <= budget
        assert sum(n.n_bytes for n in store.nodes()) == store._memory_bytes
        held = {id(c.state): len(c.state) for s in book.sequences for c in s.checkpoints}
        assert sum(held.values()) <= budget
    model.close()


def test_the_disk_keeps_to_its_bound(paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.llamacpp.prompt_files.MOST_BYTES", 300_000)
    monkeypatch.setattr("backends.llamacpp.prompt_files._CHECK_BYTES", 1)
    folder = tmp_path / "kv"
    (folder / "older").mkdir(parents=True, mode=0o700)
    old = folder / "older" / ("0" * 32 + ".kv")
    old.write_bytes(b"x" * 200_000)
    os.utime(old, (1, 1))
    model = load(paths["qwen3moe"], kv_dir=str(folder))
    for i in range(20):
        one(model, [PREAMBLE, ChatMessage("user", f"question {i} " + "word " * 100)])
    model.close()
    assert not old.exists()
    assert 0 < sum(p.stat().st_size for p in folder.rglob("*.kv")) < 500_000


def test_nothing_is_kept_where_nothing_may_be(paths: dict[str, Path]) -> None:
    for arch in ("qwen3moe", "qwen35moe"):
        model = load(paths[arch], kv_budget_bytes=0)
        for _ in range(2):
            assert one(model, [PREAMBLE, ChatMessage("user", "hello")])[1].usage.reused_tokens == 0
        assert not model._scheduler.book.sequences
        model.close()


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe", "gpt-oss", pytest.param("gemma4", marks=pytest.mark.slow)])
def test_a_storm_with_a_store_changes_no_answer(arch: str, paths: dict[str, Path], tmp_path: Path) -> None:
    rng = random.Random(3)
    folder = str(tmp_path / "kv")
    wanted = make_requests(rng, 60)
    for _ in range(2):  # the second time much comes from the disk
        model = load(paths[arch], n_ctx=768, n_seq_max=4, n_ubatch=64, kv_dir=folder)
        answers, _ = storm(model, wanted, rng)
        for request in wanted[::3]:
            check(model, request, answers[request.id])
        model.close()


def test_long_prompts_are_kept_in_parts(paths: dict[str, Path], tmp_path: Path) -> None:
    for arch in ("qwen3moe", "qwen35moe"):
        model = load(paths[arch], n_ctx=8192, kv_dir=str(tmp_path / arch))
        prompt = tokens(1, 6000)
        request = GenerateRequest(id="a", tokens=prompt, sampling=GREEDY)
        run(model, request)
        model.close()
        model = load(paths[arch], n_ctx=8192, kv_dir=str(tmp_path / arch))
        other = GenerateRequest(id="a", tokens=prompt[:5500] + tokens(2, 100), sampling=GREEDY)
        assert computed(run(model, other)["a"][1]) <= (100 if arch == "qwen3moe" else 5600 - 4096)
        _, end = run(model, request)["a"]
        assert computed(end) <= SLACK
        model.close()


def test_of_many_checkpoints_the_oldest_thin_out() -> None:
    kept, turns = Checkpoints(), []
    for length in (500, *(n + m for n in range(1000, 40_000, 700) for m in (0, 90))):
        turns.append(length)
        kept.add(length, b"x")
    lengths = [c.length for c in kept]
    assert len(lengths) == MAX_CHECKPOINTS
    assert lengths == sorted(lengths)
    assert lengths[0] == 500
    assert lengths[-NEWEST:] == turns[-NEWEST:]
    for back in range(1000, 39_000, 500):  # what is computed again is no more than what lies behind it
        assert (found := kept.before(lengths[-1] - back)) is not None
        assert lengths[-1] - back - found.length <= 1.5 * back
    kept.cut(500)
    assert [c.length for c in kept] == [500]
    assert kept.before(499) is None


def test_of_few_checkpoints_the_last_is_kept_longest() -> None:
    kept = Checkpoints()
    for length in (500, 1000, 1100, 1900, 2000):
        kept.add(length, b"x")
    left = []
    while kept.drop_one():
        left.append([c.length for c in kept])
    assert left == [[500, 1000, 1900, 2000], [500, 1900, 2000], [500, 2000], [2000], []]
