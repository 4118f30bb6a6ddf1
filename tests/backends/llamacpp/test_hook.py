"""The seam that streaming uses: a hook that aborts a decode, has it retried, or fails it, on attention and on recurrent
models; and every architecture through the same batching."""

from __future__ import annotations

import ctypes as C
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest

from backends.gguf.file import read_gguf
from backends.interface import Delta, EngineError, Event, Failed, Finished, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp import native
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.loading import load_mmap
from backends.llamacpp.model import LlamaModel
from backends.llamacpp.parts import Parts
from backends.llamacpp.sizing import describe
from tests.gguf_factory import make_gguf

GREEDY = Sampling(temperature=0.0, max_tokens=12)


class AbortingHook:
    """Lets graphs run, but aborts the decodes whose number is in `abort` in the middle of the graph."""

    def __init__(self, abort: dict[int, str]) -> None:
        self.callback = native.lib().ggml_backend_sched_eval_callback(self._node)
        self._abort = abort
        self._decode = -1
        self._seen = 0
        self.aborted = 0

    def begin(self, batch: Batch) -> None:
        assert len(batch)
        self._decode, self._seen = self._decode + 1, 0

    def _node(self, tensor: int, ask: bool, _: object) -> bool:
        if ask:
            return C.string_at(tensor + 256, 13) == b"ffn_moe_topk-"  # struct ggml_tensor's name
        self._seen += 1
        return not (self._decode in self._abort and self._seen >= 2)

    def end(self) -> Literal["ok", "retry", "cancelled"]:
        what = self._abort.pop(self._decode, None)
        if what is None:
            return "ok"
        assert self._seen >= 2
        self.aborted += 1
        if what == "fail":
            raise EngineError("io_error", "The disk said no.")
        return "retry"


def load(path: Path, hook: AbortingHook | None) -> LlamaModel:
    request = LoadRequest(path=str(path), n_threads=1, n_seq_max=3, n_ubatch=64)
    gguf = read_gguf(path)
    base = describe(request, gguf, resident_bytes=0)
    weights = load_mmap(request, list(gguf.files), gguf.architecture, lambda _: True)
    return LlamaModel(weights, request, Parts(backend="test", reason="A test.", hook=hook), base)


def tokens(seed: int, n: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(0, 500, n))


def run(model: LlamaModel, *requests: GenerateRequest) -> tuple[dict[str, str], list[Event]]:
    for request in requests:
        model.submit(request)
    events: list[Event] = []
    while model.busy():
        events += model.step()
    texts = {r.id: "".join(e.text for e in events if isinstance(e, Delta) and e.id == r.id) for r in requests}
    return texts, events


REQUESTS = tuple(
    GenerateRequest(id=str(i), tokens=tokens(1, 100) + tokens(10 + i, 90), sampling=GREEDY) for i in range(3)
)


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe"])
def test_decodes_that_were_aborted_are_done_again_and_nothing_shows(arch: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch)
    plain = load(path, None)
    expected, _ = run(plain, *REQUESTS)
    plain.close()
    hook = AbortingHook(dict.fromkeys((0, 2, 3, 4, 8, 11, 13), "retry"))
    model = load(path, hook)
    got, _ = run(model, *REQUESTS)
    assert got == expected
    assert hook.aborted >= 6
    model.close()


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe"])
def test_a_decode_that_fails_ends_its_answers_and_the_next_is_right(arch: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch)
    hook = AbortingHook({})
    model = load(path, hook)
    sessions = tuple(msgspec.structs.replace(r, session=r.id) for r in REQUESTS)
    expected, _ = run(model, *sessions)
    for at in (1, 6):
        hook._decode, hook._abort = -1, {at: "fail"}
        model.forget()
        _, events = run(model, *sessions)
        failed = [e for e in events if isinstance(e, Failed)]
        assert failed
        assert {e.message for e in failed} == {"The disk said no."}
        assert len(failed) + sum(isinstance(e, Finished) for e in events) == 3
        assert run(model, *sessions)[0] == expected
    model.close()


@pytest.mark.parametrize(
    "arch",
    ["gpt-oss", "deepseek2", "llama", "olmoe", "glm4moe", "llama4", "gemma4", "granitehybrid", "lfm2moe", "qwen3next"],
)
def test_every_kind_of_memory_batches_shares_and_continues(arch: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch)
    model = MmapBackend().load(LoadRequest(path=str(path), n_threads=1, n_seq_max=3), lambda _: True)
    sessions = tuple(msgspec.structs.replace(r, session=r.id) for r in REQUESTS)
    alone: dict[str, str] = {}
    for request in sessions:
        model.forget()
        alone |= run(model, request)[0]
    model.forget()
    together, events = run(model, *sessions)
    assert together == alone
    reused = sorted(e.usage.reused_tokens or 0 for e in events if isinstance(e, Finished))
    assert reused == [0, 100, 100]
    longer = [msgspec.structs.replace(r, tokens=(r.tokens or ()) + tokens(99, 20)) for r in sessions]
    warm: dict[str, str] = {}
    for request in longer:
        texts, events = run(model, request)
        warm |= texts
        kept = next(e for e in events if isinstance(e, Finished)).usage.reused_tokens
        assert kept is not None
        assert kept >= 189
    cold: dict[str, str] = {}
    for request in longer:
        model.forget()
        cold |= run(model, request)[0]
    assert warm == cold
    model.close()
