"""Prompts beside answers that are decoded: passes are cut, one that overruns is stopped; progress within a pass."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import Delta, Finished, GenerateRequest, LoadRequest, PrefillProgress, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import AbortFlag, Batch, DecodeResult
from backends.llamacpp.pass_meter import PassMeter
from backends.llamacpp.prompt_cut import START, Deadline, PromptCut
from backends.streaming.backend import StreamBackend
from tests.gguf_factory import make_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape: dict[str, Any] = {"n_layer": 4, "n_expert": 16, "n_expert_used": 2}
    return make_gguf(tmp_path_factory.mktemp("cut") / "m.gguf", endless=True, **shape)


def request(name: str, n: int, tokens: int) -> GenerateRequest:
    prompt = tuple(range(5, 5 + n)) if n < 150 else tuple(5 + i % 150 for i in range(n))
    return GenerateRequest(id=name, tokens=prompt, sampling=Sampling(temperature=0.0, max_tokens=tokens, seed=1))


def load(path: Path, max_stall_s: float | None, **options: Any) -> Any:
    wanted = LoadRequest(
        path=str(path), n_ctx=2048, n_threads=1, n_ubatch=512, n_seq_max=2, max_stall_s=max_stall_s, **options
    )
    return MmapBackend().load(wanted, lambda _: True)


def together(model: Any) -> tuple[dict[str, str], list[int]]:
    """An answer, and a long prompt that comes while it is decoded: (texts, tokens of each batch)."""
    sizes: list[int] = []
    decode = model.context.decode

    def noting(batch: Batch) -> Any:
        sizes.append(len(batch))
        return decode(batch)

    model.context.decode = noting
    model.submit(request("first", 8, 60))
    texts = {"first": "", "second": ""}
    asked = False
    while model.busy():
        for event in model.step():
            if isinstance(event, Delta):
                texts[event.id] += event.text
        if not asked and len(sizes) > 3:
            asked = True
            model.submit(request("second", 700, 5))
    return texts, sizes


def test_the_cut_follows_what_passes_take() -> None:
    cut = PromptCut(2.0)
    cut.took(64, 0.1)
    assert cut.tokens(1) == 128  # no faster than twice as many
    cut.took(128, 8.0)
    assert cut.tokens(1) == 25
    cut.took(3, 0.5)
    assert cut.tokens(1) == 25  # the rest of a prompt tells nothing of larger passes
    cut.overran(25)
    assert cut.tokens(1) == 6
    for _ in range(5):
        cut.overran(1)
    assert cut.tokens(1) == 1
    assert PromptCut(None).max_s is PromptCut(0).max_s is None


def test_the_first_cut_is_what_steps_of_the_answers_tell() -> None:
    cut = PromptCut(2.0)
    assert 0 < cut.tokens(1) < START
    cut.stepped(0.01)
    assert cut.tokens(1) == START
    slow = PromptCut(2.0)
    slow.stepped(0.5)
    assert slow.tokens(1) == 1  # of at most 1.35 s: twice the tokens take twice as long where nothing is shared
    assert slow.tokens(8) > slow.tokens(1)
    assert slow.deadline_s == 1.5  # and the answers' own step fits into the limit
    slow.stepped(1.0)
    for _ in range(3):
        slow.stepped(0.5)
    assert 1.0 < slow.deadline_s < 1.2  # a slow one may come again
    for _ in range(60):
        slow.stepped(0.5)
    assert 1.4 < slow.deadline_s < 1.5
    slow.stepped(60.0)
    assert slow.tokens(1) == 1
    assert 0 < slow.deadline_s <= 2.0


def test_passes_are_cut_only_while_another_answer_waits(path: Path) -> None:
    model = load(path, 3600.0)
    _, sizes = together(model)
    first = next(n for n in sizes[4:] if n > 1)
    assert first == START + 1
    model.close()
    model = load(path, None)
    _, sizes = together(model)
    assert max(sizes) == 512
    model.close()


def test_a_pass_that_overruns_is_stopped_and_a_smaller_one_tried(path: Path) -> None:
    calm, hurried = load(path, None), load(path, 1e-6)
    texts, _ = together(hurried)
    assert {name: len(text) > 0 for name, text in texts.items()} == {"first": True, "second": True}
    assert texts["first"] == together(calm)[0]["first"]
    assert hurried._scheduler.cut.tokens(1) < START
    calm.close()
    hurried.close()


@pytest.mark.parametrize("own_caches", [False, True])
def test_after_a_pass_that_was_stopped_the_answers_get_a_token_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, own_caches: bool
) -> None:
    model = load(path, 3600.0, own_caches=own_caches)
    clocks: list[Deadline] = []

    class Clock(Deadline):
        def __init__(self, seconds: float | None, abort: AbortFlag) -> None:
            super().__init__(seconds, abort)
            clocks.append(self)

    monkeypatch.setattr("backends.llamacpp.scheduler.Deadline", Clock)
    sizes: list[int] = []
    decode = model.context.decode

    def stopping(batch: Batch) -> Any:
        """As if the first two passes with a prompt beside the answer had overrun."""
        sizes.append(len(batch))
        stopped = len(sizes) > 4 and len(batch) > 2 and sum(n > 2 for n in sizes[4:]) <= 2
        if stopped:
            clocks[-1].passed = True
            return DecodeResult("cancelled", frozenset(), 3600.0)
        return decode(batch)

    model.context.decode = stopping
    model.submit(request("first", 8, 40))
    told = 0
    while model.busy():
        told += sum(isinstance(event, Delta | Finished) and event.id == "second" for event in model.step())
        if len(sizes) == 4:
            model.submit(request("second", 300, 3))
    first = next(i for i, n in enumerate(sizes) if i >= 4 and n > 2)
    assert sizes[first + 1] == (2 if own_caches else 1)  # caches of their own can't leave a sequence out
    second = next(i for i, n in enumerate(sizes) if i > first and n > 2)
    assert 2 < sizes[second] <= sizes[first] // 2
    assert sizes[second + 1] == (2 if own_caches else 1)
    assert told > 0
    model.close()


def test_a_pass_tells_by_its_layers_how_far_it_is() -> None:
    meter = PassMeter(4)
    meter.begin(8)
    meter.layer(0)
    assert meter.share() == 0.0  # a moment's work
    meter.begin(512)
    told = []
    for layer in range(4):
        meter.layer(layer)
        told.append(meter.share())
    assert told == sorted(told)
    assert 0.5 < told[-1] < 1
    meter.end()
    assert meter.share() == 0.0
    assert sum(meter.layer_s) > 0
    assert meter.pass_s() is not None


def test_progress_moves_within_a_pass(path: Path) -> None:
    wanted = LoadRequest(
        path=str(path), n_ctx=1024, n_threads=1, n_ubatch=512, store="pool",
        ram_bytes=read_gguf(path).bytes.experts // 2,
    )  # fmt: skip
    model: Any = StreamBackend().load(wanted, lambda _: True)
    told: list[PrefillProgress] = []
    chosen = model.pager.whole.chosen

    def asking(row: int, *rest: Any) -> None:
        model.prefill_progress(told.append)
        chosen(row, *rest)

    model.pager.whole.chosen = asking
    model.submit(request("q", 400, 1))
    while model.busy():
        model.step()
    done = [event.done for event in told]
    assert len(set(done)) >= 2
    assert done == sorted(done)
    assert 0 < done[-1] < 400
    assert all(event.total == 400 for event in told)
    assert told[-1].eta_s is not None
    model.close()


def test_a_pass_without_layers_to_tell_goes_by_the_one_before(path: Path) -> None:
    meter = PassMeter(0)
    meter.begin(512)
    assert meter.running
    assert meter.share() == 0.0
    assert meter.pass_s() is None
    time.sleep(0.05)
    meter.end()
    assert not meter.running
    meter.begin(400)
    assert meter.pass_s() is not None
    time.sleep(0.01)
    assert 0 < meter.share() < 1
    meter.end()
    meter.begin(64)  # another size tells nothing
    assert meter.pass_s() is None


def test_mmap_tells_that_a_pass_goes_on(path: Path) -> None:
    model = load(path, None)
    told: list[PrefillProgress] = []
    decode = model.context.decode

    def asking(batch: Batch) -> Any:
        model.prefill_progress(told.append)
        result = decode(batch)
        model.prefill_progress(told.append)
        return result

    model.context.decode = asking
    model.submit(request("q", 1400, 1))
    while model.busy():
        model.step()
    assert len(told) == 6  # three passes
    assert [event.done for event in told] == sorted(event.done for event in told)
    assert told[0].eta_s is None
    assert told[-1].eta_s is not None
    model.prefill_progress(told.append)
    assert len(told) == 6
    model.close()
