"""The engine's counters against the kernel's, and its hits against a policy that is simulated apart."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.engine.client import EngineClient
from backends.gguf.file import read_gguf
from backends.interface import ExpertMap, Finished, GenerateRequest, LoadRequest, Model, Sampling, Telemetry
from backends.llamacpp.residency import PageCacheMap
from backends.planner.plan import working_set
from backends.streaming.backend import StreamBackend
from backends.streaming.pagecache import PageCacheStore
from backends.streaming.pager import Pager
from backends.streaming.pool import PoolStore
from backends.system import libc
from backends.system.libc import cached_bytes
from tests.gguf_factory import make_gguf

PAGE = libc.PAGE
HALF_LIFE_TOKENS = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=32, n_expert_used=2, n_embd=256, n_ff_exp=256)
    drop_from_cache(file)
    return file


def drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def budget(path: Path, share: float) -> int:
    gguf = read_gguf(path)
    return max(working_set(gguf, None), int(gguf.bytes.experts * share))


def load(path: Path, store: str, share: float) -> tuple[Model, Pager]:
    request = LoadRequest(path=str(path), n_ctx=512, n_threads=1, store=store, ram_bytes=budget(path, share))  # type: ignore[arg-type]
    model = StreamBackend().load(request, lambda _: True)
    return model, model.pager  # type: ignore[attr-defined]


def decode(model: Model, tokens: int, seed: int = 1) -> None:
    """A short prompt and an answer whose tokens are drawn from all of the vocabulary."""
    sampling = Sampling(temperature=1, top_p=1, top_k=0, min_p=0, seed=seed, max_tokens=tokens)
    model.submit(GenerateRequest(id=f"q{seed}", tokens=(seed % 7 + 3,), sampling=sampling))
    while model.busy():
        model.step()


# ---- bytes -------------------------------------------------------------------------------------------------------


def kernel_read_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/io").read_text()
    return int(text.split("\nread_bytes: ")[1].split("\n")[0])


@pytest.mark.parametrize("store", ["pool", "pagecache"])
async def test_bytes_read_are_those_of_the_kernel(path: Path, tmp_path: Path, store: str) -> None:
    """What answers report and what telemetry counts, against /proc/<pid>/io as seen from outside."""
    seen: list[Telemetry] = []
    client = EngineClient(
        log_path=tmp_path / "engine.log", on_event=lambda e: seen.append(e) if isinstance(e, Telemetry) else None
    )
    try:
        await client.start()
        assert client.pid is not None
        limit = budget(path, 0.4)
        await client.load(LoadRequest(path=str(path), n_ctx=512, n_threads=1, store=store, ram_bytes=limit))  # type: ignore[arg-type]
        await client.watch(0.05)
        before = kernel_read_bytes(client.pid)
        reported = 0
        for number in range(3):
            sampling = Sampling(temperature=1, top_p=1, top_k=0, min_p=0, seed=number, max_tokens=40)
            request = GenerateRequest(id=str(number), tokens=(5 + number,), sampling=sampling)
            async for event in client.generate(request):
                if isinstance(event, Finished):
                    assert event.usage.read_bytes is not None
                    reported += event.usage.read_bytes
        read = kernel_read_bytes(client.pid) - before
        seen.clear()
        while not seen:
            await client.watch(0.05)
            await asyncio.sleep(0.1)
        last = seen[-1]
    finally:
        await client.stop()
    assert read > 5 << 20
    assert reported == pytest.approx(read, rel=0.01)
    assert last.read_bytes == pytest.approx(read, rel=0.01)
    # And they are the experts that were missed, in whole blocks; what was read ahead for nothing comes on top.
    assert last.expert_misses is not None
    expert = read_gguf(path).expert_layers[0].expert_bytes
    assert last.expert_misses * expert <= read * 1.01
    assert read <= last.expert_misses * (expert + 3 * 2 * PAGE) * 1.3


# ---- hits --------------------------------------------------------------------------------------------------------


class SlotPolicy:
    """The pool's policy written down again, plainly: each layer has its share of the slots; a free slot is taken first,
    then the one whose expert is coldest; every use adds 1 to an expert's heat, which halves every 64 tokens."""

    def __init__(self, layers: int, slots: int) -> None:
        edges = np.linspace(0, slots, layers + 1).astype(int)
        self.slots: list[list[int | None]] = [[None] * int(b - a) for a, b in itertools.pairwise(edges)]
        self.heat: dict[tuple[int, int], float] = {}
        self.token = 0
        self.hits = self.misses = 0

    def chosen(self, layer: int, experts: list[int], counts: list[int]) -> None:
        slots = self.slots[layer]
        for expert, count in zip(experts, counts, strict=True):
            old = self.heat.get((layer, expert), 0.0)
            self.heat[layer, expert] = old + min(count, 8) * 2.0 ** (self.token / HALF_LIFE_TOKENS)
        missing = [e for e in experts if e not in slots]
        self.hits += len(experts) - len(missing)
        self.misses += len(missing)
        for expert in missing:
            places = [i for i, owner in enumerate(slots) if owner not in experts]
            places.sort(
                key=lambda i: (slots[i] is not None, self.heat[layer, slots[i]] if slots[i] is not None else 0, i)
            )  # type: ignore[index]
            slots[places[0]] = expert


@pytest.mark.parametrize("share", [0.15, 0.4, 0.7])
def test_the_hit_rate_is_that_of_a_replayed_trace(path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """The router's choices are written down during a real answer and played through the policy above."""
    model, pager = load(path, "pool", share)
    store = pager.store
    assert isinstance(store, PoolStore)
    trace: list[tuple[int, list[int], list[int]] | int] = []
    chosen, begin = pager.chosen, pager.begin

    def noted_begin(tokens: int, *aged: Any) -> None:
        trace.append(tokens)
        begin(tokens, *aged)

    def noted(row: int, ids: Any, counts: Any, *guesses: Any) -> bool:
        trace.append((row, list(ids), [1] * len(ids) if counts is None else counts.tolist()))
        return chosen(row, ids, counts)  # nothing is read ahead: whether a guess arrived in time is the disk's affair

    monkeypatch.setattr(pager, "chosen", noted)
    monkeypatch.setattr(pager, "begin", noted_begin)
    slots = [group.n_slots for group in store._groups]
    assert len(slots) == 1  # all layers are alike
    for seed in range(1, 4):
        decode(model, 60, seed)
    ledger = pager.ledger
    hits, misses = ledger.hits, ledger.misses
    held = {(r, e) for r, e in np.argwhere(ledger.state == 2).tolist()}
    telemetry = model.telemetry()
    model.close()

    policy = SlotPolicy(len(pager.layout.rows), slots[0])
    for entry in trace:
        if isinstance(entry, int):
            policy.token += entry
        else:
            policy.chosen(*entry)
    assert misses > 200
    assert (hits, misses) == (policy.hits, policy.misses)
    assert (telemetry.expert_hits, telemetry.expert_misses) == (hits, misses)
    assert held == {(layer, e) for layer, row in enumerate(policy.slots) for e in row if e is not None}


# ---- residency ---------------------------------------------------------------------------------------------------


def present(address: int, length: int) -> int:
    """Bytes of a range that /proc/self/pagemap says are in this process's page tables."""
    first, last = address // PAGE, -(-(address + length) // PAGE)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(first * 8)
        entries = struct.unpack(f"<{last - first}Q", file.read((last - first) * 8))
    return sum(entry >> 63 for entry in entries) * PAGE


def shares(experts: ExpertMap) -> np.ndarray:
    assert experts.residency is not None
    return np.frombuffer(experts.residency, np.uint8).reshape(experts.n_layers, experts.n_experts)


def in_page_cache(path: Path, offset: int, size: int) -> int:
    """Bytes of the whole pages inside a range of a file that the kernel has (cachestat on a descriptor of our own)."""
    lo, hi = -(-offset // PAGE) * PAGE, (offset + size) // PAGE * PAGE
    with open(path, "rb") as file:
        found = cached_bytes(file.fileno(), lo, hi - lo)
    if found is None:
        pytest.skip("this kernel has no cachestat")
    return found


def test_what_the_pool_holds_is_in_memory_and_nothing_else_is(path: Path) -> None:
    model, pager = load(path, "pool", 0.4)
    store = pager.store
    assert isinstance(store, PoolStore)
    for seed in range(1, 5):
        decode(model, 60, seed)
    share = shares(pager.snapshot())
    data = path.read_bytes()
    drop_from_cache(path)
    held = np.argwhere(share == 255).tolist()
    assert len(held) * 100 > share.size * 30
    for row, expert in held:
        group, slot = store._groups[store.group[row]], int(store._slot[row, expert])
        base = group.base + slot * group.stride
        for tensor, place in zip(pager.layout.rows[row].tensors, store._at[row], strict=True):
            assert present(base + place, tensor.slice_bytes) >= tensor.slice_bytes
            start = tensor.entry.offset + expert * tensor.slice_bytes
            kept = ctypes.string_at(base + place, tensor.slice_bytes)
            assert kept == data[start : start + tensor.slice_bytes]
    for row, expert in np.argwhere(share == 0).tolist():
        assert int(store._slot[row, expert]) < 0
    assert set(np.unique(share)) <= {0, 255}
    resident = model.telemetry().resident_bytes
    assert resident == len(held) * store.cost[0]
    model.close()


def test_what_is_on_ssd_is_not_in_the_page_cache(path: Path) -> None:
    """The pool reads past the page cache: an expert shown on the SSD is in no memory at all."""
    model, pager = load(path, "pool", 0.4)
    decode(model, 30)
    share = shares(pager.snapshot())
    for row, expert in np.argwhere(share == 0).tolist()[::5]:
        for tensor in pager.layout.rows[row].tensors:
            assert in_page_cache(path, tensor.entry.offset + expert * tensor.slice_bytes, tensor.slice_bytes) == 0
    model.close()


def test_the_page_cache_store_shows_what_the_kernel_holds(path: Path) -> None:
    model, pager = load(path, "pagecache", 0.4)
    store = pager.store
    assert isinstance(store, PageCacheStore)
    decode(model, 60)
    share = shares(pager.snapshot())
    here = there = 0
    for row in range(share.shape[0]):
        ranges = store.ranges[row]
        for expert in range(share.shape[1]):
            mapped = cached = whole = 0
            for t, tensor in enumerate(pager.layout.rows[row].tensors):
                start, size = tensor.entry.offset + expert * tensor.slice_bytes, tensor.slice_bytes
                cached += in_page_cache(path, start, size)
                lo, hi = int(ranges.inner_lo[expert, t]), int(ranges.inner_hi[expert, t])
                mapped += present(int(store._base[row][t]) + lo, hi - lo)
                whole += hi - lo
            if share[row, expert] == 255:
                here += 1
                assert cached == whole, (row, expert)
            elif share[row, expert] == 0:
                there += 1
                assert cached == mapped == 0, (row, expert)
            if pager.ledger.state[row, expert] == 2:  # made resident and mapped, so that no product faults on it
                assert mapped == whole, (row, expert)
    assert here > 20
    assert there > 20
    model.close()


def test_the_map_of_mmap_is_what_mincore_says(path: Path) -> None:
    """`PageCacheMap` asks cachestat; mincore on a mapping of our own must say the same."""
    gguf = read_gguf(path)
    layer = gguf.expert_layers[0]
    tensors = [t for t in gguf.tensors if t.name.startswith(f"blk.{layer.layer}.ffn_") and "_exps" in t.name]
    size = tensors[0].nbytes // layer.n_experts
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead: what is read is what is cached
        for tensor in tensors:
            for expert in (0, 1, 5, 9, 31):
                os.pread(file.fileno(), size, tensor.offset + expert * size)
        experts = PageCacheMap(gguf)
        found = experts.snapshot()
        experts.close()
        assert found is not None
        if found.residency is None:
            pytest.skip("this kernel has no cachestat")
        share = shares(found)[0]
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    for expert in range(layer.n_experts):
        held = 0
        for tensor in tensors:
            start = tensor.offset + expert * size
            lo, hi = start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE
            pages = np.frombuffer(libc.mincore(address + lo, hi - lo), np.uint8) & 1
            inside = [min(lo + (i + 1) * PAGE, start + size) - max(lo + i * PAGE, start) for i in range(len(pages))]
            held += int((pages * np.array(inside)).sum())
        # cachestat counts whole pages, of which neighbours share the edges
        assert share[expert] / 255 == pytest.approx(
            held / (size * len(tensors)), abs=3 * 2 * PAGE / (size * len(tensors))
        )
    assert share[5] == 255
    assert share[20] == 0
