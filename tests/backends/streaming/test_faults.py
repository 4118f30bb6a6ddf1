"""What goes wrong while experts stream: a clear error or a slower answer, never a wrong one, and the engine goes on."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import Delta, EngineError, Failed, Finished, GenerateRequest, LoadRequest, Model, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.planner.plan import working_set
from backends.streaming import abi
from backends.streaming.backend import StreamBackend
from backends.streaming.pager import Pager
from tests.gguf_factory import make_gguf

STORES = ("pagecache", "pool")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=32, n_expert_used=2, n_embd=128, n_ff_exp=128)


def load(path: Path, store: str = "auto", backend: str = "stream", **options: Any) -> Model:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    gguf = read_gguf(path)
    if backend == "mmap":
        store = "auto"
    if backend == "stream" and "ram_bytes" not in options:
        options["ram_bytes"] = max(working_set(gguf, None), gguf.bytes.experts // 8)
    request = LoadRequest(path=str(path), n_ctx=512, n_threads=1, store=store, **options)  # type: ignore[arg-type]
    return maker.load(request, lambda _: True)


def pager_of(model: Model) -> Pager:
    pager: Pager = model.pager  # type: ignore[attr-defined]
    return pager


def ask(model: Model, prompt: str, n: int = 8, request_id: str = "q") -> tuple[str, str]:
    model.submit(GenerateRequest(id=request_id, prompt=prompt, sampling=Sampling(temperature=0, max_tokens=n)))
    text, reason = "", ""
    while model.busy():
        for event in model.step():
            if isinstance(event, Delta):
                text += event.text
            elif isinstance(event, Failed):
                raise EngineError(event.code, event.message)
            elif isinstance(event, Finished):
                reason = event.reason
    return text, reason


@pytest.mark.parametrize("store", STORES)
def test_a_file_that_shrinks_is_an_error_with_its_name(path: Path, store: str) -> None:
    model = load(path, store)
    ask(model, "hello")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(EngineError, match=r"m\.gguf was changed on disk") as caught:
        ask(model, "a new question")
    assert caught.value.code == "io_error"
    model.close()


@pytest.mark.parametrize("store", STORES)
def test_a_file_that_vanishes_goes_on_to_answer(path: Path, store: str) -> None:
    reference = load(path, backend="mmap")
    expected = ask(reference, "hello there")
    reference.close()
    model = load(path, store)
    path.unlink()  # the open file stays whole until it is closed
    assert ask(model, "hello there") == expected
    model.close()


def later() -> None:
    """Until the file system's clock has moved on: its times are as coarse as the kernel's tick."""
    time.sleep(0.05)


EVERYWHERE = [("mmap", "auto"), ("stream", "pagecache"), ("stream", "pool")]


@pytest.mark.parametrize(("backend", "store"), EVERYWHERE)
def test_a_file_that_was_overwritten_with_its_time_put_back(path: Path, backend: str, store: str) -> None:
    model = load(path, store, backend)
    ask(model, "hello")
    before = path.stat()
    later()
    with path.open("r+b") as file:
        file.seek(before.st_size // 3)
        file.write(bytes(100))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(EngineError, match=r"m\.gguf was changed on disk while in use; load the model again") as caught:
        ask(model, "a new question")
    assert caught.value.code == "io_error"
    model.close()


@pytest.mark.parametrize(("backend", "store"), EVERYWHERE)
def test_another_file_under_the_same_name(path: Path, tmp_path: Path, backend: str, store: str) -> None:
    other = make_gguf(tmp_path / "new.gguf", seed=1, n_layer=4, n_expert=32, n_expert_used=2, n_embd=128, n_ff_exp=128)
    model = load(path, store, backend)
    ask(model, "hello")
    other.replace(path)
    with pytest.raises(EngineError, match=r"m\.gguf was replaced by another file while in use"):
        ask(model, "a new question")
    model.close()


@pytest.mark.parametrize(("backend", "store"), EVERYWHERE)
def test_a_new_name_mode_or_link_changes_nothing_inside(path: Path, tmp_path: Path, backend: str, store: str) -> None:
    model = load(path, store, backend)
    expected = ask(model, "hello")
    changes: list[Callable[[], object]] = [
        lambda: path.chmod(0o640),
        lambda: os.link(path, tmp_path / "second.gguf"),
        lambda: path.rename(tmp_path / "third.gguf"),
        lambda: (tmp_path / "third.gguf").unlink(),
    ]
    for change in changes:
        later()
        change()
        model.forget()  # type: ignore[attr-defined]
        assert ask(model, "hello") == expected
    model.close()


@pytest.mark.parametrize(("backend", "store"), EVERYWHERE)
def test_a_file_that_changes_within_an_answer(path: Path, backend: str, store: str) -> None:
    model = load(path, store, backend)
    model.submit(GenerateRequest(id="q", prompt="hello", sampling=Sampling(temperature=0, max_tokens=200)))
    events = [event for _ in range(4) for event in model.step()]
    assert not any(isinstance(event, Failed) for event in events)
    os.utime(path, ns=(1, 1))
    while model.busy():
        events += model.step()
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.code for event in failed] == ["io_error"]
    model.close()


def test_pages_past_the_end_are_an_error_and_not_a_bus_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file shrinks in the middle of a graph: after the check at its start, before the experts are read."""
    model: Any = load(path, "pagecache")
    monkeypatch.setattr(model._parts, "check_files", lambda: None)
    monkeypatch.setattr(model.context, "_check", lambda: None)
    os.truncate(path, path.stat().st_size // 3 // 4096 * 4096)
    with pytest.raises(EngineError, match=r"can't be read from m\.gguf") as caught:
        ask(model, "hello")
    assert caught.value.code == "io_error"
    model.close()


class BrokenDisk:
    """A reader whose disk answers EIO; no block device here can be told to fail."""

    name = "broken"

    def __init__(self) -> None:
        self.tags: list[int] = []
        self.broken = True

    def submit(self, requests: Sequence[tuple[int, int, int, int, int, int]], urgent: bool = True) -> None:
        for tag, fd, address, size, offset, _ in requests:
            if not self.broken:
                import ctypes

                os.preadv(fd, [(ctypes.c_char * size).from_address(address)], offset)
            self.tags.append(tag)

    def go_on(self) -> None:
        pass

    def collect(self, at_least: int) -> list[tuple[int, int]]:
        done, self.tags = self.tags, []
        return [(tag, errno.EIO if self.broken else 0) for tag in done]

    def close(self) -> None:
        pass


def test_a_bad_sector_is_an_error_and_the_next_answer_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = load(path, backend="mmap")
    expected = ask(reference, "hello there")
    reference.close()
    disk = BrokenDisk()
    monkeypatch.setattr("backends.streaming.pool.open_reader", lambda: disk)
    model = load(path, "pool")
    with pytest.raises(EngineError, match=r"can't be read from m\.gguf \(Input/output error\)") as caught:
        ask(model, "hello there", request_id="bad")
    assert caught.value.code == "io_error"
    model.cancel("bad")
    while model.busy():
        model.step()
    disk.broken = False
    assert ask(model, "hello there", request_id="good") == expected
    model.close()


@pytest.mark.parametrize("store", STORES)
def test_the_budget_changes_between_answers(path: Path, store: str) -> None:
    reference = load(path, backend="mmap")
    total, least = read_gguf(path).bytes.experts, working_set(read_gguf(path), None)
    model = load(path, store, ram_bytes=total)
    for i, limit in enumerate((total // 2, least, total // 4, total)):
        pager_of(model).set_budget(limit)
        prompt = f"question {i}"
        assert ask(model, prompt) == ask(reference, prompt), limit
        held = sum(b or 0 for b in pager_of(model).ledger.held)
        assert held <= max(limit, least) * 1.2 + (1 << 20)
    model.close()
    reference.close()


@pytest.mark.parametrize("store", STORES)
def test_stopped_anywhere_the_next_answer_is_right(path: Path, store: str) -> None:
    """Cancels come from another thread, so they meet prefill and decode at any layer."""
    reference = load(path, backend="mmap")
    prompt = "tell me everything " * 12
    model = load(path, store)
    for i in range(12):
        timer = threading.Timer(0.001 * i, model.cancel, args=("long",))
        model.submit(GenerateRequest(id="long", prompt=f"{i} {prompt}", sampling=Sampling(max_tokens=100)))
        timer.start()
        deadline = time.monotonic() + 300
        while model.busy() and time.monotonic() < deadline:
            model.step()
        timer.join()
    model.close()
    model = load(path, store)
    model.submit(GenerateRequest(id="long", prompt=prompt, sampling=Sampling(max_tokens=100)))
    model.cancel("long")
    while model.busy():
        model.step()
    assert ask(model, "what now?") == ask(reference, "what now?")
    model.close()
    reference.close()


def test_another_llama_cpp_is_named_and_auto_takes_mmap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backends import registry

    sentence = "the backend stream needs llama-cpp-python 0.3.36"
    monkeypatch.setattr(abi, "check", lambda: sentence)
    request = LoadRequest(path=str(path), n_ctx=256)
    assert StreamBackend().why_not(request) == sentence
    with pytest.raises(EngineError) as caught:
        StreamBackend().load(request, lambda _: True)
    assert caught.value.code == "unsupported"
    model = registry.load(request, lambda _: True)
    assert model.info.backend == "mmap"
    assert sentence in model.info.backend_reason
    model.close()


def test_loading_can_be_cancelled(path: Path) -> None:
    for limit in range(3):
        calls = 0

        def progress(_: object, limit: int = limit) -> bool:
            nonlocal calls
            calls += 1
            return calls <= limit

        try:
            model = StreamBackend().load(LoadRequest(path=str(path), n_ctx=256), progress)
        except EngineError as e:
            assert e.code == "cancelled"  # noqa: PT017 - a tiny model may be loaded before the last call
        else:
            assert limit > 0
            model.close()
