"""Passes of many tokens read whole layers: mmap's logits, few bytes, the pool's contents kept, a stop at any layer."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, Delta, EngineError, Finished, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.streaming.backend import StreamBackend
from backends.streaming.staging import PassChoice, Staging
from tests.gguf_factory import make_gguf
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

SHAPE: dict[str, Any] = {"n_layer": 4, "n_expert": 32, "n_expert_used": 4}


def load(path: Path, backend: str, **options: Any) -> Any:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    request = {"n_ctx": 512, "n_threads": 1, "n_ubatch": 64, **options}
    return maker.load(LoadRequest(path=str(path), backend=backend, **request), lambda _: True)


def bench(model: Any, prompt: int = 200, tokens: int = 4, seed: int = 3) -> str:
    request = BenchRequest(prompt_tokens=prompt, tokens=tokens, seed=seed)
    return str(model.bench(request, lambda done, total: True).logits_sha256)


def pool(path: Path, share: float, **options: Any) -> Any:
    return load(path, "stream", store="pool", ram_bytes=int(read_gguf(path).bytes.experts * share), **options)


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen3next", "gpt-oss", "gemma4", "deepseek2", "llama4", "granitehybrid"])
def test_staged_passes_give_mmaps_logits(arch: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, n_expert=16, n_expert_used=2)
    for ubatch in (16, 128, 512):
        mmap = load(path, "mmap", n_ubatch=ubatch)
        reference = bench(mmap)
        mmap.close()
        for share in (0.4, 0.8):
            model = pool(path, share, n_ubatch=ubatch)
            assert bench(model) == reference, (ubatch, share)
            assert model.pager.whole.passes > 0
            assert bench(model) == reference, (ubatch, share)  # from a pool that holds something
            model.close()


def test_staged_passes_of_a_split_set(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", split=3, **SHAPE)
    mmap, model = load(path, "mmap"), pool(path, 0.3)
    assert bench(model) == bench(mmap)
    assert model.pager.whole.passes > 0
    mmap.close()
    model.close()


def test_a_prompt_reads_what_is_absent_once_a_pass_and_throws_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_embd=256, n_ff_exp=256, **SHAPE)
    gguf = read_gguf(path)
    model = pool(path, 0.5)
    bench(model, prompt=64, tokens=30)
    whole, ledger = model.pager.whole, model.pager.ledger
    held, after = ledger.state.copy(), [ledger.state]
    end = whole.end
    monkeypatch.setattr(whole, "end", lambda ok: (after.append(ledger.state.copy()), end(ok)) if whole.active else None)
    read, copied, passes = whole.staging.read_bytes, whole.staging.copied_bytes, whole.passes
    bench(model, prompt=192, tokens=1, seed=9)
    passes = whole.passes - passes
    assert passes == 3
    absent = gguf.bytes.experts - int((held == 2).sum()) * model.pager.layout.rows[0].expert_bytes
    assert whole.staging.read_bytes - read <= 1.05 * absent * passes
    assert whole.staging.copied_bytes > copied
    assert (after[-1][:-1] == held[:-1]).all()  # the last layer computes on one token, by way of the pool
    model.close()


def test_free_slots_get_what_the_prompt_used_most(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", **SHAPE)
    model = pool(path, 0.5)
    bench(model, prompt=64, tokens=1)
    ledger = model.pager.ledger
    rows = ledger.rows - 1  # the last layer computes on the token whose logits are wanted
    assert (ledger.state[:rows] == 2).mean() > 0.4
    for row in range(rows):
        uses, there = ledger.uses[row], ledger.state[row] == 2
        assert uses[there].mean() > uses[~there].mean()
    assert bench(model, prompt=8, tokens=12, seed=4) == _reference(path, 8, 12, 4)
    model.close()


def _reference(path: Path, prompt: int, tokens: int, seed: int) -> str:
    model = load(path, "mmap")
    try:
        return bench(model, prompt, tokens, seed)
    finally:
        model.close()


def test_a_short_prompt_touches_no_buffer_and_a_long_ones_are_given_back(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", **SHAPE)
    model = pool(path, 0.5)
    bench(model, prompt=5, tokens=2)
    assert not model.pager.whole.staging.touched
    bench(model, prompt=64, tokens=1)
    assert model.pager.whole.staging.touched
    bench(model, prompt=5, tokens=4)
    assert not model.pager.whole.staging.touched
    model.close()


def test_random_cases_with_stops_within_a_pass(tmp_path: Path) -> None:
    rng = random.Random(5)
    path = make_gguf(tmp_path / "m.gguf", **SHAPE)
    model, mmap = pool(path, 0.4), load(path, "mmap")
    chosen = model.pager.whole.chosen
    stop_at = [-1]

    def stopping(row: int, *rest: Any) -> None:
        if row == stop_at[0]:
            stop_at[0] = -1
            model.cancel("q")
        chosen(row, *rest)

    model.pager.whole.chosen = stopping
    for case in range(50):
        prompt = tuple(rng.randrange(200) for _ in range(rng.randint(1, 180)))
        sampling = Sampling(temperature=0.0, max_tokens=3, seed=1)
        request = GenerateRequest(id="q", tokens=prompt, sampling=sampling)
        stop_at[0] = rng.choice((-1, 0, 1, 2))
        told = _run(model, request)
        if told is None:
            stop_at[0] = -1
            told = _run(model, request)  # what was stopped has left nothing behind
        assert told == _run(mmap, request), case
        model.forget()
        mmap.forget()
    model.close()
    mmap.close()


def _run(model: Any, request: GenerateRequest) -> str | None:
    """The answer's text; None where it was stopped."""
    model.submit(request)
    events: list[Any] = []
    while model.busy():
        events += model.step()
    last = events[-1]
    assert isinstance(last, Finished)
    if last.reason == "cancelled":
        return None
    return "".join(e.text for e in events if isinstance(e, Delta))


def test_a_read_that_fails_ends_the_pass_with_the_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", **SHAPE)
    model = pool(path, 0.4)
    reference = bench(model)

    def broken(*_: Any) -> int:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patch:
        patch.setattr("backends.streaming.staging._read", broken)
        with pytest.raises(EngineError, match=r"m\.gguf") as caught:
            bench(model)
        assert caught.value.code == "io_error"
    assert bench(model) == reference
    model.close()


def test_the_choice_follows_what_reads_cost() -> None:
    choice = PassChoice(128, 8)
    assert not choice.worth(4)
    assert choice.worth(32)
    for _ in range(20):
        choice.staged(100, 1.0)
        choice.single(50, 1.0)
    eager = choice.threshold
    for _ in range(70):
        choice.single(200, 1.0)
    assert choice.threshold > eager


def test_buffers_take_turns_in_any_order(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", **SHAPE)
    model = pool(path, 0.3)
    layout, store = model.pager.layout, model.pager.store
    staging = Staging(layout, store, store.home, buffers=4)
    raw = np.memmap(path, np.uint8, mode="r")
    staging.begin([0, 1, 2, 3], around=True)
    for row in (0, 1, 2, 3, 0, 1, 3, 0, 2):  # the last three come out of turn
        for up in (True, False):
            which = [i for i, t in enumerate(layout.rows[row].tensors) if t.is_down != up]
            staging.wait(row, which)
            for i in which:
                entry, at = layout.rows[row].tensors[i].entry, staging.slice(row, i, 0)
                found = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * entry.bytes).from_address(at))
                assert (found == raw[entry.offset : entry.offset + entry.bytes]).all()
            staging.release(row, which)
    staging.give_back()
    staging.close()
    model.close()
