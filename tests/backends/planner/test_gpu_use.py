"""Layers go to a GPU unless this model's runs here were faster without."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from backends.gguf.file import GgufFile, read_gguf
from backends.planner.gpus import visible_cards
from backends.planner.machine import Gpu, Machine
from backends.planner.plan import PlanRequest, plan
from backends.planner.speed import MeasuredRun
from tests.backends.planner.test_plan import scaled
from tests.gguf_factory import make_gguf

GIB = 1 << 30
CARD = Gpu("card", 24 * GIB, 23 * GIB)
MANY_CORES = Machine(ram_total=8 * GIB, ram_available=6 * GIB, cores=64, gpus=(CARD,), disk_bytes_s=2e9)
TWO_CORES = replace(MANY_CORES, cores=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("gpu") / "m.gguf"
    return scaled(read_gguf(make_gguf(path, n_layer=8, n_expert=64, n_expert_used=4, n_ff_exp=64)), 400)


def run(tok_s: float, layers: int, held: int | None, when: float) -> MeasuredRun:
    return MeasuredRun(
        backend="stream", decode_tok_s=tok_s, n_tokens=100, expert_ram_bytes=held, n_gpu_layers=layers, when=when
    )


def test_without_runs_of_both_ways_the_gpu_is_used(model: GgufFile) -> None:
    for machine in (TWO_CORES, MANY_CORES):
        made = plan(model, machine)
        assert made.place.n_gpu_layers == model.n_layers + 1
        assert made.gpu_reason == ""


def test_what_was_asked_for_is_done(model: GgufFile) -> None:
    limit = PlanRequest(ram_bytes=model.bytes.experts // 4)
    held = plan(model, TWO_CORES, limit).place.experts_ram
    runs = [run(3.0, 9, held, 1.0), run(4.0, 0, held, 2.0)]
    for asked in (replace(limit, n_gpu_layers=99), replace(limit, vram_expert_bytes=None)):
        made = plan(model, TWO_CORES, asked, runs)
        assert made.place.n_gpu_layers > 0
        assert made.gpu_reason == ""


def test_experts_in_vram_are_still_offered(model: GgufFile) -> None:
    limit = PlanRequest(ram_bytes=model.bytes.experts // 4)
    held = plan(model, TWO_CORES, limit).place.experts_ram
    made = plan(model, TWO_CORES, limit, [run(3.0, 9, held, 1.0), run(4.0, 0, held, 2.0)])
    assert made.gpu_reason
    assert any("--vram-experts auto" in note for note in made.notes)
    asked = plan(model, TWO_CORES, replace(limit, n_gpu_layers=0))
    assert not any("--vram-experts auto" in note for note in asked.notes)


@pytest.mark.parametrize("machine", [TWO_CORES, MANY_CORES])
def test_runs_of_both_ways_decide(model: GgufFile, machine: Machine) -> None:
    limit = PlanRequest(ram_bytes=model.bytes.experts // 4)
    held = plan(model, machine, limit).place.experts_ram
    slower_there = [run(3.0, 9, held, 1.0), run(4.0, 0, held, 2.0)]
    made = plan(model, machine, limit, slower_there)
    assert made.place.n_gpu_layers == 0
    assert "4.0 tokens/s without it, and at 3.0" in made.gpu_reason
    assert made.gpu_reason in made.notes
    assert made.place == plan(model, machine, replace(limit, n_gpu_layers=0)).place
    assert made.speed is not None
    assert (made.speed.source, made.speed.expected) == ("measured", 4.0)
    faster_there = [run(4.0, 9, held, 1.0), run(3.9, 0, held, 2.0)]
    made = plan(model, machine, limit, faster_there)
    assert made.place.n_gpu_layers > 0
    assert made.speed is not None
    assert made.speed.expected == 4.0


def test_runs_of_one_way_alone_are_not_the_other_ways(model: GgufFile) -> None:
    limit = PlanRequest(ram_bytes=model.bytes.experts // 4)
    held = plan(model, TWO_CORES, limit).place.experts_ram
    made = plan(model, TWO_CORES, limit, [run(50.0, 0, held, 1.0)])
    assert made.place.n_gpu_layers > 0
    assert made.speed is not None
    assert made.speed.source == "formula"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (None, [0, 1, 2]), ("", []), ("0", [0]), ("2, 0", [2, 0]), ("GPU-bb", [1]), ("GPU-a,1", []), ("1,7,0", [1]),
        ("-1", []), ("NoDevFiles", []),
    ],
)  # fmt: skip
def test_only_cards_that_cuda_shows_are_planned_with(
    asked: str | None, shown: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan for two cards, one of them hidden, was half as large again as what the load took."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if asked is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert visible_cards(["GPU-aa11", "GPU-bb22", "GPU-aa33"]) == shown
