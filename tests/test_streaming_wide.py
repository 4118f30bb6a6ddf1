"""Many sequences in one step: the union of their experts exceeds the pool, and still every layer keeps its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.gguf_file import read_gguf
from backends.interface import BenchRequest, BenchResult, EngineError, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.streaming.backend import StreamBackend
from benchmarks.synthetic import Spec, write_model

SHARE = 0.3


@pytest.fixture(autouse=True)
def no_disk_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("backends.streaming.backend", "backends.llamacpp.backend"):
        monkeypatch.setattr(f"{module}.disk_bytes_per_second", lambda _: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 layers of 64 experts, 4 used, nearly uniform routing; 170 MB."""
    shape = Spec(layers=24, experts=64, used=4, embd=256, ff=256, heads=4, kv_heads=2, head_dim=64, vocab=4000)
    return write_model(tmp_path_factory.mktemp("wide") / "wide.gguf", shape)


def bench(path: Path, width: int, backend: str, **options: Any) -> tuple[BenchResult, Any]:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    request = LoadRequest(path=str(path), backend=backend, n_ctx=1024, n_threads=1, n_seq_max=width, **options)
    try:
        loaded = maker.load(request, lambda _: True)
    except EngineError as e:
        pytest.skip(f"no pool here: {e.message}")
    try:
        result = loaded.bench(BenchRequest(prompt_tokens=2, tokens=10, parallel=width), lambda done, total: True)
        return result, getattr(loaded, "pager", None)
    finally:
        loaded.close()


@pytest.mark.parametrize("width", [2, 8, 32, 64])
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
