"""Many long answers at once: admitted with room for 256 tokens each, together they outgrow the context by far."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp.answer import Answer
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel
from tests.gguf_factory import make_gguf

N, LENGTH, CONTEXT = 10, 420, 1024
TIE = 1e-2
"""Logits (whose spread is about 2) nearer than this may change places by llama.cpp's rounding at another width."""


def request(i: int) -> GenerateRequest:
    prompt = tuple(int(t) for t in np.random.default_rng(i).integers(0, 500, 12 + 3 * i))
    return GenerateRequest(id=f"r{i}", tokens=prompt, sampling=Sampling(temperature=0.0, max_tokens=LENGTH))


def submit(model: LlamaModel, wanted: GenerateRequest) -> Answer:
    model.submit(wanted)
    return model._scheduler.waiting[-1]


def nearly_equal(model: LlamaModel, prompt: list[int], a: list[int], b: list[int]) -> bool:
    """Whether two answers are equal, or part at a near tie of the model's logits."""
    apart = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if apart is None:
        return len(a) == len(b)
    model.forget()
    index = -1
    known, at = prompt + a[:apart], 0
    while at < len(known):
        batch = Batch()
        for i in range(at, min(len(known), at + model.context.n_batch)):
            index = batch.add(known[i], i, 0, i == len(known) - 1)
        assert model.context.decode(batch).status == "ok"
        at += len(batch)
    logits = np.ctypeslib.as_array(model.context.logits(index), (model.context.n_vocab,))
    close = abs(float(logits[a[apart]] - logits[b[apart]])) < TIE
    model.context.clear()
    return close


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe"])
def test_long_answers_that_outgrow_the_context_all_end_right(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, n_ctx_train=4096)

    def load(n_seqs: int) -> LlamaModel:
        one = LoadRequest(path=str(path), n_threads=1, n_seq_max=n_seqs, n_ctx=CONTEXT, n_ubatch=128)
        return MmapBackend().load(one, lambda _: True)

    model = load(N)
    answers = [submit(model, request(i)) for i in range(N)]
    scheduler = model._scheduler
    sent_back: dict[str, list[int]] = {}
    preempt = scheduler._preempt

    def counted(events: list[object]) -> bool:
        before = list(scheduler.active)
        done = preempt(events)  # type: ignore[arg-type]
        for answer in before:
            if answer in scheduler.waiting:
                sent_back.setdefault(answer.id, []).append(len(answer.generated))
        return done

    monkeypatch.setattr(scheduler, "_preempt", counted)
    most, ended = 0, []
    for _ in range(30_000):
        if not model.busy():
            break
        ended += [e for e in model.step() if isinstance(e, Finished)]
        most = max(most, len(scheduler.active))
        assert scheduler.book.used <= CONTEXT
    assert not model.busy()
    # it was what it should be: all began together, and there was never room for all to the end
    assert most == N
    assert sum(len(a.prompt) + len(a.generated) for a in answers) > 2 * CONTEXT
    assert sent_back
    # all end, none for want of room
    assert {e.id for e in ended} == {a.id for a in answers}
    assert {e.reason for e in ended} <= {"length", "stop"}
    # none starves: who came first is never sent back, and who is sent back again has grown meanwhile
    assert answers[0].id not in sent_back
    for lengths in sent_back.values():
        assert all(later > earlier for earlier, later in pairwise(lengths))
    model.close()

    alone = load(1)
    for i, together in enumerate(answers):
        single = submit(alone, request(i))
        while alone.busy():
            alone.step()
        assert nearly_equal(alone, [int(t) for t in single.prompt], single.generated, together.generated), i
    alone.close()
