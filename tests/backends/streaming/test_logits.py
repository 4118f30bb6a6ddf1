"""The backend `stream` gives mmap's logits, bit for bit: every store and budget, many architectures, split files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import (
    BenchRequest,
    Delta,
    EngineError,
    Event,
    Finished,
    GenerateRequest,
    LoadRequest,
    Model,
    Sampling,
)
from backends.llamacpp.backend import MmapBackend
from backends.planner.plan import working_set
from backends.streaming.backend import StreamBackend
from tests.gguf_factory import make_gguf
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

ARCHITECTURES = (
    "qwen3moe", "qwen35moe", "qwen3next", "gpt-oss", "deepseek2", "llama", "olmoe", "glm4moe", "llama4", "gemma4",
    "granitehybrid", "lfm2moe",
)  # fmt: skip
SMALL: dict[str, Any] = {"n_ctx": 512, "n_threads": 1}


def load(path: Path, backend: str, **options: Any) -> Model:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    return maker.load(LoadRequest(path=str(path), backend=backend, **{**SMALL, **options}), lambda _: True)


def bench_hash(path: Path, backend: str, request: BenchRequest, **options: Any) -> str:
    model = load(path, backend, **options)
    try:
        return model.bench(request, lambda done, total: True).logits_sha256
    finally:
        model.close()


def budgets(path: Path) -> list[dict[str, Any]]:
    """Every store at one token's working set, a quarter, a half and all of the experts, and what auto does."""
    gguf = read_gguf(path)
    least, total = working_set(gguf, None), gguf.bytes.experts
    limits = sorted({max(least, n) for n in (least, total // 4, total // 2, total)})
    stores = [{"store": s, "ram_bytes": n} for s in ("pool", "pagecache") for n in limits]
    return [{}, *stores, {"ram_bytes": least}]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_same_logits_as_mmap(arch: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch)
    request = BenchRequest(prompt_tokens=24, tokens=8, seed=3)
    reference = bench_hash(path, "mmap", request)
    for options in budgets(path):
        assert bench_hash(path, "stream", request, **options) == reference, options


def test_same_logits_from_a_split_set(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_layer=3, n_expert=16, split=3)
    whole = make_gguf(tmp_path / "whole.gguf", n_layer=3, n_expert=16)
    request = BenchRequest(prompt_tokens=24, tokens=8, seed=4)
    reference = bench_hash(whole, "mmap", request)
    assert bench_hash(path, "mmap", request) == reference
    for options in budgets(path):
        assert bench_hash(path, "stream", request, **options) == reference, options


def test_same_logits_with_fewer_experts_and_it_says_lossy(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_expert=16, n_expert_used=4)
    request = BenchRequest(prompt_tokens=12, tokens=4)
    few = bench_hash(path, "stream", request, n_expert_used=2)
    assert few == bench_hash(path, "mmap", request, n_expert_used=2)
    assert few != bench_hash(path, "stream", request)
    model = load(path, "stream", n_expert_used=2)
    assert model.info.lossy
    assert (model.info.n_expert_used, model.info.n_expert_used_trained) == (2, 4)
    model.close()


def test_several_sequences_share_one_budget(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=32, n_expert_used=4)
    request = BenchRequest(prompt_tokens=6, tokens=6, parallel=4)
    reference = bench_hash(path, "mmap", request, n_seq_max=4)
    for options in budgets(path):
        assert bench_hash(path, "stream", request, n_seq_max=4, **options) == reference, options


def test_a_limit_under_one_token_is_refused_with_the_least_and_the_advised(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_embd=256, n_ff_exp=256, n_expert=32, n_expert_used=8, n_layer=4)
    with pytest.raises(EngineError, match=r"give at least [0-9.]+, better [0-9.]+") as caught:
        load(path, "stream", ram_bytes=working_set(read_gguf(path), None) - 1)
    assert caught.value.code == "budget_too_small"


def test_loading_reads_no_expert(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_embd=256, n_ff_exp=512, n_expert=64, n_expert_used=2, n_layer=4)
    gguf = read_gguf(path)
    assert gguf.bytes.experts > 20 * gguf.bytes.dense
    import os

    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    model = load(path, "stream", store="pool", ram_bytes=gguf.bytes.experts // 2)
    header = 1 << 20
    assert model.info.load_read_bytes is not None
    assert model.info.load_read_bytes <= gguf.bytes.dense * 1.02 + header
    model.close()


# ---- random cases --------------------------------------------------------------------------------------------------


def answer(model: Model, request: GenerateRequest, stop_after: int | None = None) -> tuple[str, str]:
    """The text and how it ended; cancels after `stop_after` steps of the engine."""
    model.submit(request)
    text: list[str] = []
    reason, steps = "", 0
    while model.busy():
        if stop_after is not None and steps == stop_after:
            model.cancel(request.id)
        steps += 1
        events: list[Event] = model.step()
        for event in events:
            if isinstance(event, Delta):
                text.append(event.text)
            elif isinstance(event, Finished):
                reason = event.reason
    return "".join(text), reason


def random_cases(folder: Path, n: int, seed: int) -> None:
    """Each case: a prompt, a store, a budget, a ubatch, and perhaps an answer that is stopped before it."""
    rng = random.Random(seed)
    models = [
        make_gguf(folder / "a.gguf", n_layer=3, n_expert=16, n_expert_used=2),
        make_gguf(folder / "b.gguf", arch="gpt-oss", n_expert=16, n_expert_used=4),
        make_gguf(folder / "c.gguf", arch="deepseek2", n_expert=32, n_expert_used=4, split=2),
    ]
    done = 0
    while done < n:
        path = rng.choice(models)
        gguf = read_gguf(path)
        least, total = working_set(gguf, None), gguf.bytes.experts
        options: dict[str, Any] = {"n_ubatch": rng.choice((8, 32, 128)), "n_batch": 128}
        limited = rng.random() < 0.8
        store = rng.choice(("pool", "pagecache", "auto"))
        extra = {"store": store, **({"ram_bytes": rng.randint(least, total)} if limited else {})}
        stream = load(path, "stream", **options, **extra)
        # the pool may shrink the ubatch to its budget, and llama.cpp rounds by the ubatch: compare like with like
        mmap = load(path, "mmap", n_ubatch=stream.info.n_ubatch, n_batch=stream.info.n_batch)
        try:
            for _ in range(10):
                prompt = "".join(rng.choice("abcdefgh <|>\n") for _ in range(rng.randint(1, 200)))
                sampling = Sampling(
                    temperature=rng.choice((0.0, 0.8, 1.5)), seed=rng.getrandbits(31), max_tokens=rng.randint(1, 12)
                )
                stop = rng.choice((None, None, 0, 1, 2, 5))
                request = GenerateRequest(id="q", prompt=prompt, sampling=sampling)
                told = []
                for model in (stream, mmap):  # the same history: llama.cpp rounds by where in the cache a token lies
                    if stop is not None:
                        answer(model, GenerateRequest(id="s", prompt=prompt + "x", sampling=sampling), stop)
                    told.append(answer(model, request))
                assert told[0] == told[1], (path.name, extra, prompt, sampling, stop)
                done += 1
        finally:
            stream.close()
            mmap.close()


def test_random_cases(tmp_path: Path) -> None:
    random_cases(tmp_path, 20, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_random_cases(tmp_path: Path) -> None:
    random_cases(tmp_path, 300, seed=2)
