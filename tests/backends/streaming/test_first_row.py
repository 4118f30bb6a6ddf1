"""The first row's experts, which no guess reads ahead, have a larger share of the pool; nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.gguf.file import read_gguf
from backends.interface import BenchRequest, LoadRequest
from backends.llamacpp.backend import MmapBackend
from backends.planner.plan import working_set
from backends.streaming.backend import StreamBackend
from backends.streaming.slot_group import SlotGroup
from tests.gguf_factory import make_gguf

BENCH = BenchRequest(prompt_tokens=24, tokens=24)


@pytest.mark.parametrize(("rows", "slots", "first"), [(24, 240, 30), (24, 2400, 128), (60, 7000, 128), (8, 240, 30)])
def test_each_slot_is_somebodys_home(rows: int, slots: int, first: int) -> None:
    group = SlotGroup(list(range(rows)), 4096, slots, 128)
    try:
        sizes = [hi - lo for lo, hi in group.home.values()]
        assert [lo for lo, _ in group.home.values()] == [0, *(hi for _, hi in group.home.values())][:-1]
        assert sum(sizes) == slots
        assert sizes[0] == first
        assert max(sizes[1:]) - min(sizes[1:]) <= 1
    finally:
        group.close()


def test_rows_after_the_first_size_of_slots_share_evenly() -> None:
    group = SlotGroup(list(range(1, 25)), 4096, 240, 128)
    try:
        assert {hi - lo for lo, hi in group.home.values()} == {10}
    finally:
        group.close()


def test_logits_are_mmaps_and_the_first_row_misses_less(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", n_layer=20, n_expert=32, n_expert_used=2)
    request = LoadRequest(path=str(path), n_ctx=256, n_threads=1)
    model = MmapBackend().load(request, lambda _: True)
    expected = model.bench(BENCH, lambda done, total: True).logits_sha256
    model.close()
    request = LoadRequest(
        path=str(path), n_ctx=256, n_threads=1, store="pool", ram_bytes=4 * working_set(read_gguf(path))
    )
    model = StreamBackend().load(request, lambda _: True)
    try:
        assert model.bench(BENCH, lambda done, total: True).logits_sha256 == expected
        hook = model._parts.hook
        state = hook._pager.ledger.state  # type: ignore[union-attr]
        held = (state > 0).sum(axis=1)
        assert held[0] > 1.5 * held[1:].mean()
    finally:
        model.close()
