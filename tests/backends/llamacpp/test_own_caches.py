"""Sequences with a KV cache each: the same answers, and one pass over the experts a step."""

from __future__ import annotations

import ctypes as C
import random
from pathlib import Path
from typing import Literal

import pytest

from backends.gguf.file import read_gguf
from backends.interface import EngineError, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp import native
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.batch_plan import largest_block
from backends.llamacpp.context import Batch, DecodeResult
from backends.llamacpp.loading import load_mmap
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.parts import Parts
from backends.llamacpp.sizing import describe
from backends.streaming.abi import NAME
from tests.gguf_factory import make_gguf
from tests.storms import check, make_requests, storm, tokens


class CountingHook:
    """Counts the graphs that are computed, by the nodes of one layer's router."""

    def __init__(self) -> None:
        self.callback = native.lib().ggml_backend_sched_eval_callback(self._node)
        self.graphs = self.decodes = 0

    def _node(self, tensor: int, ask: bool, _: object) -> bool:
        if ask:
            return C.string_at(tensor + NAME) == b"ffn_moe_topk-1"
        self.graphs += 1
        return True

    def begin(self, batch: Batch) -> None:
        self.decodes += 1

    def end(self) -> Literal["ok", "retry", "cancelled"]:
        return "ok"


def load(path: Path, n_seqs: int, *, part: int = 512, ubatch: int = 64, hook: CountingHook | None = None) -> LlamaModel:
    request = LoadRequest(
        path=str(path), n_threads=1, n_seq_max=n_seqs, n_ctx=n_seqs * part, n_ubatch=ubatch, own_caches=True
    )
    if hook is None:
        return MmapBackend().load(request, lambda _: True)
    gguf = read_gguf(path)
    weights = load_mmap(request, list(gguf.files), gguf.architecture, lambda _: True)
    return LlamaModel(weights, request, Parts("mmap", "", hook=hook), describe(request, gguf, resident_bytes=0))


@pytest.mark.parametrize("seed", [4, 7])
@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "deepseek2", "gemma4", "llama4"])
def test_a_storm_of_requests_changes_no_answer(arch: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    model = load(make_gguf(tmp_path / "m.gguf", arch=arch), 6)
    assert model.context.own_caches
    requests = make_requests(rng, 40)
    answers, cancelled = storm(model, requests, rng)
    assert len(cancelled) < len(requests)
    book = model._scheduler.book
    assert not book.sequences
    assert not book.used
    assert all(model.context.length(i) == 0 for i in range(6))
    for wanted in requests:
        check(model, wanted, answers[wanted.id])
    model.close()


def test_every_batch_is_computed_in_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = CountingHook()
    model = load(make_gguf(tmp_path / "m.gguf", n_layer=2), 12, hook=hook)
    decode, wrong, reused = model.context.decode, [], 0

    def watched(batch: Batch) -> DecodeResult:
        before = hook.graphs
        result = decode(batch)
        if hook.graphs != before + 1:
            wrong.append((batch.seq_ids, hook.graphs - before))
        return result

    monkeypatch.setattr(model.context, "decode", watched)
    rng = random.Random(5)
    waiting = make_requests(rng, 60)
    while waiting or model.busy():
        while waiting and rng.random() < 0.7:
            model.submit(waiting.pop())
        model.step()
        reused = max([reused, *(a.reused for a in model._scheduler.active)])
    model.close()
    assert not wrong
    assert hook.decodes > 60
    assert reused >= 16  # beginnings that another sequence had were copied


def test_a_sequence_that_cant_be_moved_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(make_gguf(tmp_path / "m.gguf"), 4)
    copy, moves = model.context.copy, []

    def failing(source: int, target: int, end: int, state: bytes | None = None) -> bool:
        moves.append(target)
        if len(moves) % 2:
            return False
        return copy(source, target, end, state)

    monkeypatch.setattr(model.context, "copy", failing)
    requests = make_requests(random.Random(3), 20)
    answers, _ = storm(model, requests, random.Random(3), cancels=0.0)
    assert len(moves) > 4
    for wanted in requests:
        check(model, wanted, answers[wanted.id])
    model.close()


def test_recurrent_models_share_one_cache_all_the_same(tmp_path: Path) -> None:
    model = load(make_gguf(tmp_path / "m.gguf", arch="qwen35moe"), 4)
    assert not model.context.own_caches
    model.close()


def test_an_answer_has_its_part_of_the_context_alone(tmp_path: Path) -> None:
    model = load(make_gguf(tmp_path / "m.gguf"), 4, part=200)
    assert model.context.seq_ctx == 256
    assert model.info.n_ctx == 4 * 256
    with pytest.raises(EngineError, match="256"):
        model.submit(GenerateRequest(id="a", tokens=tokens(1, 256), sampling=Sampling(temperature=0.0)))
    model.close()


def test_the_largest_block() -> None:
    """Against trying them all."""
    assert largest_block([], 8) == largest_block([0, 0], 8) == (0, 0, 0)
    rng = random.Random(1)
    for _ in range(400):
        heights = [rng.choice([0, 0, 1, rng.randrange(40)]) for _ in range(rng.randrange(1, 12))]
        start, count, each = largest_block(heights, 10_000)
        spans = ((a, b) for a in range(len(heights)) for b in range(a + 1, len(heights) + 1))
        assert count * each == max((b - a) * min(heights[a:b]) for a, b in spans)
        assert all(h >= each for h in heights[start : start + count])
        most = rng.randrange(1, 60)
        start, count, each = largest_block(heights, most)
        assert count * each <= most
        assert all(h >= each for h in heights[start : start + count])
        assert not any(heights) or count * each
