"""The KV cache in q8_0: half the memory as planned, the same logits in both backends, and states of its own."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, EngineError, Finished, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from backends.planner.kv import KV_TYPES, kv_bytes
from backends.planner.machine import Machine
from backends.planner.plan import PlanRequest, plan
from backends.streaming.backend import StreamBackend
from tests.gguf_factory import make_gguf
from tests.no_disk_probe import no_disk_probe

__all__ = ["no_disk_probe"]

WIDE: dict[str, int] = {"n_embd": 128, "head_dim": 32, "n_layer": 4}
ARCHITECTURES = ("qwen3moe", "gpt-oss", "deepseek2", "qwen35moe", "gemma4", "llama4", "granitehybrid", "qwen4exp")


def load(path: Path, backend: str = "mmap", **options: Any) -> LlamaModel:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    return maker.load(LoadRequest(path=str(path), **{"n_ctx": 256, "n_threads": 1, **options}), lambda _: True)


def logits(path: Path, backend: str, **options: Any) -> str:
    model = load(path, backend, **options)
    try:
        return model.bench(BenchRequest(prompt_tokens=24, tokens=8), lambda done, total: True).logits_sha256
    finally:
        model.close()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_backends_give_the_same_logits_and_others_than_f16(tmp_path: Path, arch: str) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, **WIDE)
    expected = logits(path, "mmap", kv_type="q8_0")
    assert expected != logits(path, "mmap")
    for store in ("pool", "pagecache"):
        assert logits(path, "stream", store=store, kv_type="q8_0") == expected


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "qwen35moe"])
def test_memory_is_as_planned(tmp_path: Path, arch: str) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, n_ctx_train=1 << 16, **WIDE)
    gguf = read_gguf(path)
    machine = Machine(ram_total=16 << 30, ram_available=12 << 30, cores=4, disk_free=1 << 40, disk_bytes_s=1e9)
    planned, real = {}, {}
    for kind, width in KV_TYPES.items():
        planned[kind] = plan(gguf, machine, PlanRequest(n_ctx=16384, kv_type=kind)).place.kv_ram  # type: ignore[arg-type]
        model = load(path, n_ctx=16384, kv_type=kind)
        real[kind] = model.info.kv_bytes or 0
        assert model.info.kv_type == kind
        exact = kv_bytes(gguf, 16384, n_seqs=model.context.n_seqs, type_bytes=width).total
        assert real[kind] == pytest.approx(exact, rel=0.01, abs=2 * 5300)
        model.close()
    saved = kv_bytes(gguf, 16384).attention * (1 - 34 / 64)
    assert planned["f16"] - planned["q8_0"] == pytest.approx(saved, rel=0.001)
    assert real["f16"] - real["q8_0"] == pytest.approx(saved, rel=0.01)


def test_heads_that_do_not_fit_the_blocks_are_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    for backend in ("mmap", "stream"):
        with pytest.raises(EngineError, match="heads are 16 numbers wide, and q8_0 keeps 32 together; take --kv"):
            load(path, backend, kv_type="q8_0")
    machine = Machine(ram_total=16 << 30, ram_available=12 << 30, cores=4, disk_free=1 << 40, disk_bytes_s=1e9)
    assert plan(read_gguf(path), machine, PlanRequest(kv_type="q8_0")).verdict == "unsupported"


def chat(model: LlamaModel, n_tokens: int) -> int:
    """Asks a prompt of so many tokens; how many of them came from the store."""
    tokens = tuple(int(t) % 500 for t in range(7, 7 + n_tokens))
    model.submit(GenerateRequest(id="q", tokens=tokens, sampling=Sampling(temperature=0, max_tokens=2)))
    restored = 0
    while model.busy():
        for event in model.step():
            restored += (event.usage.restored_tokens or 0) if isinstance(event, Finished) else 0
    return restored


def test_what_was_read_is_used_where_model_and_type_agree(tmp_path: Path) -> None:
    """Every pair of who read and who asks: two files of one size and name, two types, two sizes of the context."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    paths = [make_gguf(folder / "m.gguf", seed=i, **WIDE) for i, folder in enumerate(folders)]
    kinds = list(itertools.product((0, 1), KV_TYPES, (256, 1024)))
    for i, source in enumerate(kinds):
        kept = tmp_path / f"kept-{i}"
        model = load(paths[source[0]], kv_type=source[1], n_ctx=source[2], kv_dir=str(kept))
        chat(model, 150)
        model.close()
        for target in [*random.Random(i).sample(kinds, 3), (*source[:2], 1280 - source[2])]:
            shutil.copytree(kept, tmp_path / "copy")
            model = load(paths[target[0]], kv_type=target[1], n_ctx=target[2], kv_dir=str(tmp_path / "copy"))
            restored = chat(model, 150)
            model.close()
            shutil.rmtree(tmp_path / "copy")
            assert (restored > 100) == (source[:2] == target[:2]), (source, target, restored)
