"""Tables that are only looked up stay on the SSD: equal logits, not in memory, counted there by the plan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, EngineError, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from backends.planner.machine import Machine
from backends.planner.plan import PlanRequest, plan
from backends.streaming.backend import StreamBackend
from backends.streaming.hook import RouterHook
from backends.streaming.tables import Tables
from backends.system import libc
from tests.gguf_factory import make_gguf
from tests.gguf_fuzz import Info, unpack

STORES = ("pool", "pagecache")
BENCH = BenchRequest(prompt_tokens=24, tokens=8)


@pytest.fixture(autouse=True)
def any_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.gguf.file.LEAST_TABLE_BYTES", 1)
    for module in ("backends.streaming.backend", "backends.llamacpp.backend"):
        monkeypatch.setattr(f"{module}.disk_bytes_per_second", lambda _: None)


def load(path: Path, backend: str = "stream", **options: Any) -> LlamaModel:
    maker = StreamBackend() if backend == "stream" else MmapBackend()
    return maker.load(LoadRequest(path=str(path), n_ctx=256, n_threads=1, **options), lambda _: True)


def logits(path: Path, backend: str = "stream", **options: Any) -> str:
    model = load(path, backend, **options)
    try:
        return model.bench(BENCH, lambda done, total: True).logits_sha256
    finally:
        model.close()


def tables_of(model: LlamaModel) -> Tables:
    hook = model._parts.hook
    assert isinstance(hook, RouterHook)
    (tables,) = set(hook._tables.values())
    return tables


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize(("arch", "names"), [
    ("qwen4exp", {"token_embd.weight", "per_layer_token_embd.weight"}),
    ("qwen3moe", {"token_embd.weight"}),
    ("granitehybrid", set()),
])  # fmt: skip
def test_equal_logits_and_the_table_is_not_in_memory(tmp_path: Path, arch: str, names: set[str], split: int) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, n_layer=4, split=split)
    gguf = read_gguf(path)
    assert set(gguf.tables) == names
    assert gguf.bytes.kept == gguf.bytes.dense - sum(t.nbytes for t in gguf.tensors if t.name in names)
    expected = logits(path, "mmap")
    for store in STORES:
        assert logits(path, store=store, ram_bytes=gguf.bytes.experts) == expected
    model = load(path)
    assert model.info.table_bytes == gguf.bytes.tables
    assert model.info.dense_bytes == gguf.bytes.kept
    model.close()


def test_without_the_stub_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch="qwen4exp", n_layer=4)
    expected = logits(path, "mmap")

    def forbidden(*_: object) -> None:
        raise OSError("no executable memory here")

    monkeypatch.setattr("backends.streaming.hook.Trampoline", forbidden)
    assert logits(path) == expected


def test_only_the_rows_of_a_batch_are_brought_in(tmp_path: Path) -> None:
    """A row takes a page here, and there are 2,048 of them: the page cache has the header and a few rows after it."""
    path = make_gguf(tmp_path / "m.gguf", n_embd=2048, n_vocab=2048, head_dim=16, n_layer=1, n_expert=4)
    model = load(path)
    tables = tables_of(model)
    (table,) = tables._tables.values()
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    libc.madvise(table.base, table.size, libc.MADV_DONTNEED)
    model.pager.store.forget_file()  # type: ignore[attr-defined]
    if any(libc.mincore(table.base, table.size)):
        pytest.skip("this file system keeps pages that nobody wants")
    ids = np.array([3, 1000, 3, 2047], np.int32)
    tables.need(next(iter(tables._tables)), ids)
    there = np.flatnonzero(np.frombuffer(libc.mincore(table.base, table.size), np.uint8) & 1)
    row = table.data - table.base + ids.astype(np.int64) * table.row_bytes
    wanted = {p for at in row for p in range(int(at) // libc.PAGE, -(-int(at + table.row_bytes) // libc.PAGE))}
    assert wanted <= set(there.tolist())
    assert len(there) < 3 * len(wanted)
    os.close(fd)
    model.close()


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen4exp"])
def test_a_row_that_cannot_be_read_is_an_error_and_the_next_answer_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    path = make_gguf(tmp_path / "m.gguf", arch=arch, n_layer=4)
    expected = logits(path, "mmap")
    model = load(path)
    advisor = tables_of(model)._advisor
    assert advisor is not None
    real, fails = advisor.advise, [True]

    def advise(starts: Any, lengths: Any, advice: int) -> None:
        if fails and advice == libc.MADV_POPULATE_READ:
            fails.pop()
            raise OSError(5, "Input/output error")
        real(starts, lengths, advice)

    monkeypatch.setattr(advisor, "advise", advise)
    with pytest.raises(EngineError, match=r"token_embd.weight can't be read from m.gguf \(Input/output error\)"):
        model.bench(BENCH, lambda done, total: True)
    assert model.bench(BENCH, lambda done, total: True).logits_sha256 == expected
    model.close()


def test_the_plan_counts_them_on_the_ssd(tmp_path: Path) -> None:
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf", arch="qwen4exp", n_layer=4, n_table_rows=20_000))
    machine = Machine(ram_total=16 << 30, ram_available=12 << 30, cores=4, disk_free=1 << 40, disk_bytes_s=1e9)
    streams, mapped = (plan(gguf, machine, PlanRequest(backend=b)) for b in ("stream", "mmap"))
    assert streams.place.tables_ssd == gguf.bytes.tables > 2 << 20
    assert mapped.place.tables_ssd == 0
    assert mapped.place.dense_ram - streams.place.dense_ram == gguf.bytes.tables


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def test_a_table_of_6_gib_takes_no_memory(tmp_path: Path) -> None:
    """Above 4 GiB llama.cpp would read it lazily by itself. A sparse file: the rows that are looked up are zeros."""
    g = unpack(make_gguf(tmp_path / "small.gguf", arch="qwen4exp", n_layer=4).read_bytes())
    table = next(t for t in g.tensors if t.name == b"per_layer_token_embd.weight")
    g.tensors.remove(table)
    g.settle()
    rows = (6 << 30) // (2 * table.dims[0])
    g.tensors.append(Info(table.name, [table.dims[0], rows], table.kind, len(g.data)))
    path = tmp_path / "large.gguf"
    path.write_bytes(g.pack())
    os.truncate(path, path.stat().st_size + (6 << 30))
    gguf = read_gguf(path)
    assert gguf.bytes.tables > 6 << 30
    before = anonymous_bytes()
    model = load(path, store="pool", ram_bytes=gguf.bytes.experts)
    assert model.bench(BENCH, lambda done, total: True).logits_sha256
    assert anonymous_bytes() - before < 256 << 20
    machine = Machine(ram_total=4 << 30, ram_available=3 << 30, cores=4, disk_free=1 << 40, disk_bytes_s=1e9)
    assert plan(gguf, machine, PlanRequest()).verdict == "fits"
    assert plan(gguf, machine, PlanRequest(backend="mmap")).verdict == "no_memory"
    model.close()


def all_experts_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads as with all experts in VRAM; without a GPU llama.cpp puts them into its own memory."""
    every = lambda _request, gguf, *_: tuple(x.layer for x in gguf.expert_layers)  # noqa: E731
    monkeypatch.setattr("backends.streaming.backend.choose_vram_layers", every)


def test_where_nothing_streams_small_tables_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook sees to their rows then, and a page fault in the middle of a token is a tenth of it on a GPU."""
    path = make_gguf(tmp_path / "m.gguf", n_layer=4)
    all_experts_loaded(monkeypatch)
    model = load(path)
    try:
        assert model._parts.hook is None
        assert model.info.table_bytes == 0
        assert model.info.dense_bytes == read_gguf(path).bytes.dense
        assert model._parts.fingerprint  # a saved state belongs to it
        told = model.bench(BENCH, lambda done, total: True).logits_sha256
    finally:
        model.close()
    assert told == logits(path, "mmap")


def test_where_nothing_streams_large_tables_stay_on_the_ssd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_layer=4)
    all_experts_loaded(monkeypatch)
    monkeypatch.setattr("backends.planner.vram.TABLE_SHARE", 1 << 50)
    model = load(path)
    try:
        assert model.info.dense_bytes == read_gguf(path).bytes.kept
        told = model.bench(BENCH, lambda done, total: True).logits_sha256
    finally:
        model.close()
    assert told == logits(path, "mmap")
