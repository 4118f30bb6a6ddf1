"""Every read of a run fails once, or comes short, or late, or twice: each answer is right or refused, and after a
refusal the next one is right."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.gguf.file import read_gguf
from backends.interface import EngineError, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel
from backends.planner.plan import working_set
from backends.streaming.backend import StreamBackend
from backends.streaming.pagecache import Advisor
from backends.streaming.pager import Pager
from backends.system import libc
from tests.backends.streaming.faulty_reads import FAULTS, FaultyReader
from tests.gguf_factory import make_gguf

PROMPTS = [[int(t) for t in np.random.default_rng(i).integers(0, 500, 14)] for i in range(12)]
PREFILL = 6
"""Tokens of a prompt that are decoded together; the others one by one."""


def logits(model: LlamaModel, prompt: list[int]) -> bytes:
    """The logits of every token of a prompt, computed in an empty context."""
    model.forget()
    out = []
    for start, end in [(0, PREFILL), *((i, i + 1) for i in range(PREFILL, len(prompt)))]:
        batch = Batch()
        for i in range(start, end):
            batch.add(prompt[i], i, 0, True)
        assert model.context.decode(batch).status == "ok"
        width = (model.context.n_vocab,)
        out += [np.ctypeslib.as_array(model.context.logits(i), width).tobytes() for i in range(end - start)]
    return b"".join(out)


def load(path: Path, backend: str, **options: Any) -> LlamaModel:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    return maker.load(LoadRequest(path=str(path), n_ctx=256, n_threads=1, n_gpu_layers=0, **options), lambda _: True)


def pager_of(model: LlamaModel) -> Pager:
    pager: Pager = model.pager  # type: ignore[attr-defined]
    return pager


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    return make_gguf(folder / "m.gguf", n_layer=4, n_expert=32, n_expert_used=2, n_embd=128, n_ff_exp=128)


@pytest.fixture(scope="module")
def expected(path: Path) -> list[bytes]:
    model = load(path, "mmap")
    out = [logits(model, prompt) for prompt in PROMPTS]
    model.close()
    return out


@pytest.fixture
def budget(path: Path) -> int:
    """So that much is read again, and yet what was read for nothing may still be there when it is chosen."""
    gguf = read_gguf(path)
    return max(working_set(gguf, None), gguf.bytes.experts * 6 // 10)


@pytest.fixture
def guess_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every guess is read ahead, right or wrong: what fails there is what nobody waits for."""
    monkeypatch.setattr("backends.streaming.guess_record._TRIAL_TOKENS", 0)
    monkeypatch.setattr("backends.streaming.guess_record.Record.worth", lambda self, floor, k: list(range(k)))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyReader:
    reader = FaultyReader()
    monkeypatch.setattr("backends.streaming.pool.open_reader", lambda: reader)
    return reader


class Told:
    """What came of the answers of a run."""

    def __init__(self, model: LlamaModel, expected: list[bytes]) -> None:
        self.model, self.expected = model, expected
        self.right = self.refused = 0

    def ask(self, i: int) -> bool:
        """Whether it was refused; fails where it was wrong."""
        try:
            got = logits(self.model, PROMPTS[i])
        except EngineError as e:
            if e.code != "io_error":
                raise
            self.refused += 1
            return True
        assert got == self.expected[i], "silently wrong"
        self.right += 1
        return False


@pytest.mark.usefixtures("guess_all")
@pytest.mark.parametrize("seed", range(5))
def test_faulty_reads_in_100_places(
    path: Path, expected: list[bytes], budget: int, disk: FaultyReader, seed: int
) -> None:
    """One model for all, so that what one answer leaves behind meets the next ones."""
    rng = random.Random(seed)
    model = load(path, "stream", store="pool", ram_bytes=budget)
    told = Told(model, expected)
    reads = 60
    for _ in range(100):
        disk.restart({rng.randrange(reads): rng.choice(FAULTS) for _ in range(rng.choice((1, 1, 1, 5)))})
        i = rng.randrange(len(PROMPTS))
        refused = told.ask(i)
        reads = max(8, disk.asked)
        disk.restart({})
        assert not told.ask(i if refused else rng.randrange(len(PROMPTS)))
    model.close()
    assert told.refused > 10
    assert told.right > 110


@pytest.mark.usefixtures("guess_all")
def test_a_guess_that_failed_is_read_again_when_it_is_chosen(
    path: Path, expected: list[bytes], budget: int, disk: FaultyReader
) -> None:
    """Everything that is read ahead fails, and no answer needs it."""
    model = load(path, "stream", store="pool", ram_bytes=budget)
    submit = disk.submit

    def only_guesses_fail(requests: Any, urgent: bool = True) -> None:
        disk.faults = {} if urgent else dict.fromkeys(range(disk.asked, disk.asked + len(requests)), "error")
        submit(requests, urgent)

    disk.submit = only_guesses_fail  # type: ignore[method-assign]
    for prompt, right in zip(PROMPTS, expected, strict=True):
        assert logits(model, prompt) == right
    assert disk.met > 50
    assert not pager_of(model).store.failures()
    model.close()


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The n-th request to the kernel fails with so many's errno; n counts from when the key -1 was set to 0."""
    plan: dict[int, int] = {}
    real = Advisor.advise

    def advise(self: Advisor, starts: Any, lengths: Any, what: int) -> None:
        plan[-1] = plan.get(-1, 0) + 1
        code = plan.get(plan[-1])
        if code and what in (libc.MADV_POPULATE_READ, libc.MADV_WILLNEED):
            raise OSError(code, "the test says so")
        real(self, starts, lengths, what)

    monkeypatch.setattr(Advisor, "advise", advise)
    return plan


@pytest.mark.usefixtures("guess_all")
@pytest.mark.parametrize("seed", range(2))
def test_pages_that_cannot_be_read_in_30_places(
    path: Path, expected: list[bytes], budget: int, advice: dict[int, int], seed: int
) -> None:
    rng = random.Random(seed)
    model = load(path, "stream", store="pagecache", ram_bytes=budget)
    told = Told(model, expected)
    asked = 100
    for _ in range(30):
        advice.clear()
        advice[rng.randrange(asked)] = rng.choice((errno.EIO, errno.EFAULT, errno.EAGAIN))
        i = rng.randrange(len(PROMPTS))
        refused = told.ask(i)
        asked = max(8, advice.get(-1, 0))
        advice.clear()
        assert not told.ask(i if refused else rng.randrange(len(PROMPTS)))
    model.close()
    assert told.refused > 3
    assert told.right > 35
