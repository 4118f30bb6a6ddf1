"""Many sequences in one step: the union of their experts exceeds the pool, and still every layer keeps its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, BenchResult, EngineError, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.streaming.backend import StreamBackend
from backends.streaming.pager import Pager
from backends.streaming.prefetch import Prefetcher
from benchmarks.synthetic import Spec, write_model
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

SHARE = 0.3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers of 64 experts, 4 used, nearly uniform routing; 170 MB."""
    shape = Spec(layers=24, experts=64, used=4, embd=256, ff=256, heads=4, kv_heads=2, head_dim=64, vocab=4000)
    return write_model(tmp_path_factory.mktemp("wide") / "wide.gguf", shape)


def bench(
    path: Path, width: int, backend: str, *, prompt_tokens: int = 2, tokens: int = 8, n_ctx: int = 1024, **options: Any
) -> tuple[BenchResult, Any]:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    request = LoadRequest(path=str(path), backend=backend, n_ctx=n_ctx, n_threads=1, n_seq_max=width, **options)
    try:
        loaded = maker.load(request, lambda _: True)
    except EngineError as e:
        pytest.skip(f"no pool here: {e.message}")
    try:
        wanted = BenchRequest(prompt_tokens=prompt_tokens, tokens=tokens, parallel=width)
        result = loaded.bench(wanted, lambda done, total: True)
        return result, getattr(loaded, "pager", None)
    finally:
        loaded.close()


@pytest.mark.parametrize("width", [4, 48])
def test_misses_stay_near_the_union_less_the_resident_share(model: Path, width: int) -> None:
    gguf = read_gguf(model)
    budget = int(gguf.bytes.experts * SHARE)
    result, pager = bench(model, width, "stream", store="pool", ram_bytes=budget)
    assert result.hit_rate is not None
    assert result.budget_bytes is not None
    assert result.budget_bytes <= budget
    share = result.budget_bytes / gguf.bytes.experts
    assert 1 - result.hit_rate <= 1.1 * (1 - share)
    assert pager.ahead_bytes > 0  # the next layer's experts were read while this one computed
    assert result.logits_sha256 == bench(model, width, "mmap")[0].logits_sha256


def test_wide_steps_read_ahead_for_the_next_one_and_prompts_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Spec(layers=6, experts=64, used=4, embd=256, ff=256, heads=4, kv_heads=2, head_dim=64, vocab=4000)
    path = write_model(tmp_path / "wide.gguf", shape)
    asked: list[tuple[int, int, int]] = []
    chosen, ahead = Pager.chosen, Prefetcher.read
    wide: list[int] = []

    def noting(self: Pager, row: int, ids, counts, *guess) -> bool:  # type: ignore[no-untyped-def]
        wide[:] = [1 if counts is None else int(counts.sum()) // 4]
        return chosen(self, row, ids, counts, *guess)

    def noting_ahead(self: Prefetcher, row: int, experts: list[int], in_use, **given) -> None:  # type: ignore[no-untyped-def]
        asked.append((wide[0], row, len(experts)))
        ahead(self, row, experts, in_use, **given)

    monkeypatch.setattr(Pager, "chosen", noting)
    monkeypatch.setattr(Prefetcher, "read", noting_ahead)
    bench(path, 48, "stream", prompt_tokens=20, tokens=6, n_ctx=2048, store="pool", ram_bytes=14 << 20)
    steps = [(row, n) for tokens, row, n in asked if tokens == 48]
    assert sum(row == 0 and n > 40 for row, n in steps) >= 4  # the first step doesn't know what follows it
    assert all(n > 40 for row, n in steps[-5:])  # of 64: 48 tokens use 61, and guesses alone name fewer
    assert not any(row == 0 and n for tokens, row, n in asked if tokens > 256)


def test_a_single_layer_keeps_what_it_computes_on(tmp_path: Path) -> None:
    shape = Spec(layers=1, experts=64, used=4, embd=256, ff=256, heads=4, kv_heads=2, head_dim=64, vocab=4000)
    path = write_model(tmp_path / "one.gguf", shape)
    got, _ = bench(path, 12, "stream", tokens=20, store="pool", ram_bytes=5 << 20)
    assert 0 < (got.hit_rate or 0) < 1
    assert got.logits_sha256 == bench(path, 12, "mmap", tokens=20)[0].logits_sha256
