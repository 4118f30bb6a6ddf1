"""Prompts beside answers that are decoded: passes are cut, one that overruns is stopped; progress within a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import Delta, GenerateRequest, LoadRequest, PrefillProgress, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.pass_meter import PassMeter
from backends.llamacpp.prompt_cut import START, PromptCut
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
    assert cut.tokens == START
    cut.took(64, 0.1)
    assert cut.tokens == 128  # no faster than twice as many
    cut.took(128, 8.0)
    assert cut.tokens == 25
    cut.overran(25)
    assert cut.tokens == 6
    for _ in range(5):
        cut.overran(1)
    assert cut.tokens == 1
    assert PromptCut(None).max_s is PromptCut(0).max_s is None


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
    assert hurried._scheduler.cut.tokens < START
    calm.close()
    hurried.close()


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
