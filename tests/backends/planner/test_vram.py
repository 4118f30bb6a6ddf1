"""Which layers' experts go to VRAM, and how a plan tells of it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from backends.gguf.file import GgufFile, read_gguf
from backends.planner.machine import Gpu, Machine
from backends.planner.plan import PlanRequest, plan
from backends.planner.vram import bytes_of, choose_layers, layers_of_each_gpu, loads_tables
from tests.gguf_factory import make_gguf

MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("vram") / "m.gguf"
    return read_gguf(make_gguf(path, n_layer=6, n_expert=16, n_embd=256, n_ff_exp=256))


def choose(gguf: GgufFile, wanted: int | None, free: list[int], gpu_layers: int = 99) -> tuple[int, ...]:
    return choose_layers(
        gguf, wanted, n_gpu_layers=gpu_layers, free=free, kv=0, n_ctx=512, n_ubatch=512, runtime=0,
    )  # fmt: skip


def layer_bytes(gguf: GgufFile) -> int:
    return bytes_of(gguf, [gguf.expert_layers[0].layer])


def test_layers_are_spread_as_llama_cpp_spreads_them() -> None:
    assert layers_of_each_gpu(6, 99, [1]) == [[0, 1, 2, 3, 4, 5]]
    assert layers_of_each_gpu(6, 3, [1]) == [[4, 5]]  # the output is one of three
    assert layers_of_each_gpu(7, 99, [3, 1]) == [[0, 1, 2, 3, 4, 5], [6]]
    assert layers_of_each_gpu(6, 0, [1]) == [[]]


def test_as_many_whole_layers_as_were_asked_for_from_the_last_one_on(model: GgufFile) -> None:
    each, plenty = layer_bytes(model), [1 << 40]
    assert choose(model, 0, plenty) == ()
    assert choose(model, None, plenty) == (0, 1, 2, 3, 4, 5)
    assert choose(model, 2 * each, plenty) == (4, 5)
    assert choose(model, 2 * each + each // 2, plenty) == (4, 5)
    assert choose(model, each - 1, plenty) == ()


def test_only_layers_whose_gpu_has_room_and_that_are_on_one(model: GgufFile) -> None:
    each = layer_bytes(model)
    assert choose(model, None, [1 << 40], gpu_layers=3) == (4, 5)
    some = choose(model, None, [model.bytes.dense + 3 * each + 64 * MIB])
    assert 0 < len(some) < 6 or each < 16 * MIB
    assert choose(model, None, [MIB]) == ()
    two = choose(model, 4 * each, [1 << 40, 1 << 40])
    assert {x < 4 for x in two} == {True, False}  # layers 4 and 5 and the output are the second one's: each has a part


def test_a_plan_counts_them_and_offers_what_is_not_used(model: GgufFile) -> None:
    machine = Machine(
        ram_total=8 << 30, ram_available=4 << 30, cores=4, gpus=(Gpu("card", 24 << 30, 23 << 30),), disk_bytes_s=1e9
    )
    none = plan(model, machine, PlanRequest(vram_expert_bytes=0))
    every = plan(model, machine, PlanRequest(vram_expert_bytes=None))
    assert none.place.vram_experts == 0
    assert every.place.vram_expert_layers == 6
    assert every.place.vram_experts == model.bytes.experts
    assert every.place.vram - none.place.vram == model.bytes.experts
    assert every.place.experts_ssd == every.place.experts_ram == 0
    assert not any("--vram-experts" in note for note in every.notes)
    some = plan(model, machine, PlanRequest(vram_expert_bytes=3 * layer_bytes(model)))
    assert some.place.vram_expert_layers == 3
    assert some.place.experts_ram == model.bytes.experts - some.place.vram_experts


def test_tables_are_loaded_only_where_nothing_streams_and_memory_is_ample(model: GgufFile) -> None:
    every = tuple(x.layer for x in model.expert_layers)
    with_tables = replace(model, bytes=replace(model.bytes, tables=64 * MIB))
    assert loads_tables(with_tables, every, 2 << 30)
    assert not loads_tables(with_tables, every, (1 << 30) - 1)
    assert not loads_tables(with_tables, every[1:], 2 << 30)
