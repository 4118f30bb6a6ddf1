"""Whole layers in odd circumstances give mmap's logits: sizes that don't divide, several sequences, stops, no room."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import (
    BenchRequest,
    Delta,
    EngineError,
    Failed,
    Finished,
    GenerateRequest,
    LoadRequest,
    Sampling,
)
from backends.llamacpp.backend import MmapBackend
from backends.streaming.backend import StreamBackend
from backends.system import libc
from backends.system.libc import PAGE
from tests.gguf_factory import make_gguf
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

SHAPE: dict[str, Any] = {"n_layer": 4, "n_expert": 16, "n_expert_used": 2}


def load(path: Path, backend: str, **options: Any) -> Any:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    wanted = {"n_ctx": 512, "n_threads": 1, "n_ubatch": 64, "max_stall_s": None, **options}
    if backend == "stream":
        wanted = {"store": "pool", "ram_bytes": int(read_gguf(path).bytes.experts * 0.4), **wanted}
    return maker.load(LoadRequest(path=str(path), backend=backend, **wanted), lambda _: True)


def bench(model: Any, prompt: int, parallel: int = 1, tokens: int = 3) -> str:
    asked = BenchRequest(prompt_tokens=prompt, tokens=tokens, seed=3, parallel=parallel)
    return str(model.bench(asked, lambda done, total: True).logits_sha256)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("long") / "m.gguf", **SHAPE)


@pytest.mark.parametrize(
    ("n_ctx", "ubatch", "prompt", "staged"),
    [
        (512, 48, 200, True),  # doesn't divide the prompt
        (512, 199, 200, True),  # leaves one token for the last pass
        (512, 512, 20, True),  # more than the prompt
        (256, 4096, 250, True),  # more than the context
        (512, 7, 60, False),  # so few that no pass wants most of a layer
        (512, 1, 20, False),
    ],
)
def test_any_ubatch_gives_mmaps_logits(path: Path, n_ctx: int, ubatch: int, prompt: int, staged: bool) -> None:
    mmap, model = (load(path, kind, n_ctx=n_ctx, n_ubatch=ubatch) for kind in ("mmap", "stream"))
    assert model.context.n_batch == mmap.context.n_batch == min(ubatch, n_ctx)
    assert bench(model, prompt) == bench(mmap, prompt)
    assert (model.pager.whole.passes > 0) == staged
    mmap.close()
    model.close()


@pytest.mark.parametrize("own_caches", [False, True])
@pytest.mark.parametrize("ubatch", [64, 256])
def test_prompts_of_several_sequences_in_one_pass(path: Path, ubatch: int, own_caches: bool) -> None:
    options = {"n_seq_max": 4, "n_ctx": 1024, "n_ubatch": ubatch, "own_caches": own_caches}
    mmap, model = load(path, "mmap", **options), load(path, "stream", **options)
    assert bench(model, 50, parallel=4) == bench(mmap, 50, parallel=4)
    assert model.pager.whole.passes > 0
    mmap.close()
    model.close()


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen3next", "gpt-oss", "gemma4"])
def test_prompts_together_with_stops_within_a_pass(arch: str, tmp_path: Path) -> None:
    """Two answers in random company, of which one may be stopped at any layer: the other is as with mmap."""
    rng = random.Random(arch)
    path = make_gguf(tmp_path / "m.gguf", arch=arch, split=2, n_expert=16, n_expert_used=2)
    options = {"n_seq_max": 2, "n_ctx": 1024, "n_ubatch": 96}
    mmap, model = load(path, "mmap", **options), load(path, "stream", **options)
    chosen, stop = model.pager.whole.chosen, [-1]

    def stopping(row: int, *rest: Any) -> None:
        if row == stop[0]:
            stop[0] = -1
            model.cancel("b")
        chosen(row, *rest)

    model.pager.whole.chosen = stopping
    for case in range(8):
        prompts = {name: tuple(rng.randrange(200) for _ in range(rng.randint(1, 230))) for name in "ab"}
        stop[0] = rng.choice((-1, 0, 1))
        told = answers(model, prompts)
        stop[0] = -1
        if told["b"] is None:  # what was stopped has left nothing behind
            alone = answers(model, {"b": prompts["b"]})
            mmap.forget()
            assert alone == answers(mmap, {"b": prompts["b"]}), case
        model.forget()
        mmap.forget()
        assert answers(model, prompts) == answers(mmap, prompts), case
        model.forget()
        mmap.forget()
    assert model.pager.whole.passes > 0
    mmap.close()
    model.close()


def answers(model: Any, prompts: dict[str, tuple[int, ...]]) -> dict[str, str | None]:
    """The texts that follow these prompts together; None for one that was stopped."""
    texts: dict[str, str | None] = dict.fromkeys(prompts, "")
    for name, tokens in prompts.items():
        model.submit(GenerateRequest(id=name, tokens=tokens, sampling=Sampling(temperature=0.0, max_tokens=3, seed=1)))
    while model.busy():
        for event in model.step():
            assert not isinstance(event, Failed)
            if isinstance(event, Delta):
                texts[event.id] = (texts[event.id] or "") + event.text
            elif isinstance(event, Finished) and event.reason == "cancelled":
                texts[event.id] = None
    return texts


def test_where_the_buffers_have_no_room_prompts_go_by_the_pool(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = read_gguf(path)
    limit = int(gguf.bytes.experts * 0.4)
    monkeypatch.setattr("backends.streaming.store_choice.memory_for_experts", lambda *_: limit)
    mmap, model = load(path, "mmap"), load(path, "stream", ram_bytes=limit)
    assert model.pager.whole is None
    assert bench(model, 200) == bench(mmap, 200)
    mmap.close()
    model.close()


def test_buffers_that_cant_be_had_cost_no_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mmap, model = load(path, "mmap"), load(path, "stream")

    def refused(_: int) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr("backends.streaming.staging.libc.reserve", refused)
        assert bench(model, 200) == bench(mmap, 200)
        assert model.pager.whole.passes == 0
    assert bench(model, 200) == bench(mmap, 200)
    assert model.pager.whole.passes > 0  # there is memory again
    mmap.close()
    model.close()


@pytest.mark.parametrize("store", ["pool", "pagecache"])
def test_the_compute_buffers_of_a_long_prompt_are_given_back(path: Path, store: str) -> None:
    options = {"n_ctx": 2048, "n_ubatch": 2048}
    mmap, model = load(path, "mmap", **options), load(path, "stream", store=store, **options)
    scratch = model.context.hook.scratch
    seen: dict[int, tuple[int, int]] = {}
    begin = scratch.begin
    left: list[int] = []
    """What is in memory when a pass begins: later huge pages may bring more of it in than the pass touches."""

    def noting(tokens: int) -> None:
        seen.update(scratch._buffers)
        begin(tokens)
        left.append(sum(resident(*place) for place in seen.values()))

    scratch.begin = noting
    assert bench(model, 1500, tokens=2) == bench(mmap, 1500, tokens=2)
    touched = sum(resident(*place) for place in seen.values())
    assert touched > 4 << 20
    assert scratch.given_back == 0
    left.clear()
    reference = bench(mmap, 4, tokens=6)
    assert bench(model, 4, tokens=6) == reference
    assert scratch.given_back == 1
    assert left[0] < touched / 4
    assert bench(model, 1500, tokens=2) == bench(mmap, 1500, tokens=2)
    mmap.close()
    model.close()


def resident(address: int, size: int) -> int:
    """Bytes of a range that are in memory."""
    start, end = -(-address // PAGE) * PAGE, (address + size) // PAGE * PAGE
    return PAGE * sum(b & 1 for b in libc.mincore(start, end - start))


def test_a_stop_doesnt_wait_for_a_layer_that_is_being_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk takes seconds for a layer; whoever stops the prompt has it at once, and the next one is right."""
    mmap, model = load(path, "mmap"), load(path, "stream")
    prompt = tuple(i % 200 for i in range(200))
    slow = [True]
    read = __import__("backends.streaming.staging", fromlist=["_read"])._read

    def stuck(*given: Any) -> Any:
        until = time.monotonic() + 60
        while slow[0] and time.monotonic() < until:
            time.sleep(0.01)
        return read(*given)

    monkeypatch.setattr("backends.streaming.staging._read", stuck)
    wait = model.pager.whole.staging.wait

    def stopping(*given: Any) -> Any:
        if slow[0]:
            model.cancel("a")
        there = wait(*given)
        if not there:
            slow[0] = False  # what is on its way is waited for, and no more
        return there

    model.pager.whole.staging.wait = stopping
    assert answers(model, {"a": prompt}) == {"a": None}
    assert not slow[0]
    assert answers(model, {"a": prompt}) == answers(mmap, {"a": prompt})
    mmap.close()
    model.close()


@pytest.mark.parametrize("ubatch", [0, -1, 70000])
def test_an_impossible_ubatch_is_one_sentence(path: Path, ubatch: int) -> None:
    for backend in ("mmap", "stream"):
        with pytest.raises(EngineError, match="ubatch must be from 1 to 65536") as caught:
            load(path, backend, n_ubatch=ubatch)
        assert caught.value.code == "bad_request"
