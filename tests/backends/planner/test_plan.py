"""backends.planner.plan: verdicts, budgets, placement, context and speed, and what remembered runs change."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from backends.gguf.file import EXPERT_WEIGHT, GgufFile, read_gguf
from backends.planner.compute import router_copies
from backends.planner.kv import kv_bytes
from backends.planner.machine import Gpu, Machine
from backends.planner.plan import (
    GPU_IDLE_BYTES,
    GPU_RUNTIME_BYTES,
    LEAST_RESERVE_BYTES,
    PROCESS_BYTES,
    RESERVE_BYTES,
    PlanRequest,
    advised_budget,
    largest_context,
    plan,
    working_set,
)
from backends.planner.speed import CURVES, MeasuredRun, compute_seconds, hit_rates, prompt_token_seconds
from tests.gguf_factory import make_gguf
from tests.gguf_shapes import ARCHITECTURES

GIB = 1 << 30
MACHINE = Machine(
    ram_total=16 * GIB, ram_available=12 * GIB, cores=4, disk_free=100 * GIB, disk_bytes_s=1e9, memory_bytes_s=60e9
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    return read_gguf(make_gguf(path, n_layer=4, n_expert=64, n_expert_used=4, n_ff_exp=64, n_ctx_train=1 << 18))


def scaled(gguf: GgufFile, factor: int) -> GgufFile:
    """The same model with every tensor `factor` times as large: no file of that size is needed."""
    kinds = type(gguf.bytes)(*(getattr(gguf.bytes, f) * factor for f in gguf.bytes.__struct_fields__))
    return replace(
        gguf,
        bytes=kinds,
        file_bytes=gguf.file_bytes * factor,
        tensors=tuple(replace(t, nbytes=t.nbytes * factor) for t in gguf.tensors),
        expert_layers=tuple(replace(layer, nbytes=layer.nbytes * factor) for layer in gguf.expert_layers),
    )


def test_a_model_that_fits(tiny: GgufFile) -> None:
    got = plan(tiny, MACHINE)
    assert got.verdict == "fits"
    assert got.place.experts_ssd == 0
    assert got.place.experts_ram == tiny.bytes.experts
    assert got.speed is not None
    assert got.speed.bound == "compute"
    assert got.n_ctx == 8192
    assert got.budgets.least * 16 == got.budgets.best == tiny.bytes.experts
    parts = got.place
    assert parts.rss == (
        parts.dense_ram + parts.experts_ram + parts.kv_ram + parts.compute_ram + parts.process_ram
    )  # fmt: skip


def test_a_model_larger_than_memory_streams(tiny: GgufFile) -> None:
    model = scaled(tiny, 8000)
    assert model.bytes.experts > MACHINE.ram_available
    got = plan(model, MACHINE)
    assert got.verdict == "streams"
    assert got.speed is not None
    assert got.speed.bound == "disk"
    assert got.speed.low < got.speed.expected < got.speed.high
    assert 0 < got.speed.cold < got.speed.expected
    assert got.place.rss + got.place.prompt_ram + RESERVE_BYTES == pytest.approx(MACHINE.ram_available, rel=0.001)
    assert "%" in got.sentence
    assert "1.00 GB/s" in got.speed.reason
    # more memory, a faster disk and fewer experts all help
    for better in (replace(MACHINE, ram_available=16 * GIB), replace(MACHINE, disk_bytes_s=4e9)):
        quicker = plan(model, better).speed
        assert quicker is not None
        assert quicker.expected > got.speed.expected
    fewer = plan(model, MACHINE, PlanRequest(n_expert_used=2))
    assert fewer.speed is not None
    assert fewer.speed.expected > got.speed.expected
    assert any("differ" in note for note in fewer.notes)
    # plain mmap is far slower once memory is short, and as fast where it isn't
    mapped = plan(model, MACHINE, PlanRequest(backend="mmap")).speed
    assert mapped is not None
    assert mapped.expected < got.speed.expected / 4
    fitting = plan(tiny, MACHINE, PlanRequest(backend="mmap")).speed
    assert fitting is not None
    assert fitting.expected == plan(tiny, MACHINE).speed.expected  # type: ignore[union-attr]


def test_a_limit_is_kept_and_one_under_a_token_is_refused(tiny: GgufFile) -> None:
    model = scaled(tiny, 1000)
    limit = 2 * working_set(model)
    got = plan(model, MACHINE, PlanRequest(ram_bytes=limit))
    assert (got.verdict, got.place.experts_ram, got.budgets.here) == ("streams", limit, limit)
    refused = plan(model, MACHINE, PlanRequest(ram_bytes=working_set(model) - 1))
    assert refused.verdict == "no_memory"
    assert refused.speed is None
    assert "allow at least" in refused.sentence
    assert advised_budget(model) == max(2 * working_set(model), model.bytes.experts // 4)


def test_what_cannot_run_says_what_to_do(tiny: GgufFile) -> None:
    dense = scaled(replace(tiny, expert_layers=()), 100_000)
    got = plan(dense, MACHINE)
    assert got.verdict == "no_memory"
    assert "smaller quantization" in got.sentence
    assert got.n_ctx_max == 0
    long = plan(tiny, replace(MACHINE, ram_available=400 << 20), PlanRequest(n_ctx=1 << 18))
    assert long.verdict == "no_memory"
    assert f"at most {long.n_ctx_max:,} tokens fits" in long.sentence
    full = plan(tiny, MACHINE, PlanRequest(to_download=200 * GIB, download_bytes_s=1e8))
    assert full.verdict == "no_disk"
    assert "free up 101.0 GiB more" in full.sentence
    assert full.download_s == pytest.approx(2147, abs=1)
    assert plan(replace(tiny, problems=("It is a projector.",)), MACHINE).sentence == "It is a projector."


def test_the_largest_context_is_the_largest(tiny: GgufFile) -> None:
    for available in (280 << 20, 350 << 20, 450 << 20):
        machine = replace(MACHINE, ram_available=available)
        most = largest_context(tiny, machine, PlanRequest())
        assert most % 256 == 0
        assert 0 < most < tiny.n_ctx_train
        assert plan(tiny, machine).n_ctx == min(8192, most // 2)
        fits, over = (plan(tiny, machine, PlanRequest(n_ctx=n)) for n in (most, most + 256))
        assert fits.verdict != "no_memory"
        assert over.verdict == "no_memory"
        assert fits.place.anonymous + fits.budgets.least + LEAST_RESERVE_BYTES <= available
    assert largest_context(tiny, MACHINE, PlanRequest(n_seqs=1)) == tiny.n_ctx_train
    beyond = plan(tiny, MACHINE, PlanRequest(n_ctx=1 << 20))
    assert beyond.n_ctx == tiny.n_ctx_train
    assert "never allocated" in beyond.notes[0]
    assert plan(tiny, MACHINE, PlanRequest(n_seqs=16)).n_ctx == 16 * 2048


def test_a_gpu_takes_everything_but_experts(tiny: GgufFile) -> None:
    model = scaled(tiny, 1000)
    card = replace(MACHINE, gpus=(Gpu("card", 8 * GIB, 8 * GIB),))
    got = plan(model, card)
    assert got.place.n_gpu_layers == model.n_layers + 1
    kv = kv_bytes(model, got.n_ctx).total
    copy = max(t.nbytes for t in model.tensors if EXPERT_WEIGHT.match(t.name))  # a prefill's copy of one matrix
    mask = 2 * got.n_ctx * got.n_ubatch  # in both of its types
    fixed = got.place.compute_ram + mask + copy + GPU_RUNTIME_BYTES
    assert got.place.vram == model.bytes.dense - model.bytes.embeddings + kv + fixed
    assert got.place.dense_ram == model.bytes.embeddings
    assert got.place.experts_ram == model.bytes.experts
    half = plan(model, card, PlanRequest(n_gpu_layers=2))
    assert 0 < half.place.vram < got.place.vram
    assert plan(model, card, PlanRequest(n_gpu_layers=0)).place.vram == fixed  # long prompts are computed there


def test_each_of_several_gpus_takes_its_own_buffers(tiny: GgufFile) -> None:
    """As measured on two H100 (benchmarks/results/gpu.md)."""
    model, card = scaled(tiny, 1000), Gpu("card", 8 * GIB, 8 * GIB)
    one = plan(model, replace(MACHINE, gpus=(card,)))
    two = plan(model, replace(MACHINE, gpus=(card, card)))
    fixed = plan(model, replace(MACHINE, gpus=(card,)), PlanRequest(n_gpu_layers=0)).place.vram
    assert two.place.vram == one.place.vram + fixed
    idle = plan(model, replace(MACHINE, gpus=(card, card)), PlanRequest(n_gpu_layers=0)).place.vram
    assert idle == fixed + GPU_IDLE_BYTES


def test_hit_rates_keep_their_order_and_grow() -> None:
    before = (0.0, 0.0, 0.0)
    for share in (0.0, 0.01, 0.03, 0.06, 0.12, 0.18, 0.25, 0.36, 0.48, 0.71, 0.9, 1.0):
        worst, usual, best = hit_rates(share)
        assert 0 <= worst <= usual <= best <= 1
        assert all(now >= then for now, then in zip((worst, usual, best), before, strict=True))
        before = worst, usual, best
    assert before == (1.0, 1.0, 1.0)
    for curve in CURVES:  # the published points lie inside
        for share, rate in curve:
            assert hit_rates(share)[0] <= rate <= hit_rates(share)[2]


def test_runs_here_take_the_formulas_place(tiny: GgufFile) -> None:
    model = scaled(tiny, 8000)
    formula = plan(model, MACHINE)
    held = formula.place.experts_ram
    runs = [
        MeasuredRun(backend="stream", decode_tok_s=3.0, n_tokens=100, expert_ram_bytes=held, hit_rate=0.8, when=1.0)
    ]
    got = plan(model, MACHINE, None, runs).speed
    assert got is not None
    assert (got.source, got.expected, got.hit_rate) == ("measured", 3.0, 0.8)
    assert "ran here once" in got.reason
    runs.append(MeasuredRun(backend="stream", decode_tok_s=6.0, n_tokens=100, expert_ram_bytes=held, when=2.0))
    both = plan(model, MACHINE, None, runs).speed
    assert both is not None
    assert both.expected == pytest.approx(4.0)  # tokens over seconds, not the mean of rates
    assert both.low <= 3.0 < 6.0 <= both.high
    for other in (
        replace(runs[0], expert_ram_bytes=held // 2),
        replace(runs[0], expert_ram_bytes=None),
        replace(runs[0], n_tokens=3),
    ):
        assert plan(model, MACHINE, None, [other]).speed == formula.speed
    assert plan(model, MACHINE, PlanRequest(backend="mmap"), runs).speed.source == "formula"  # type: ignore[union-attr]


def test_this_machines_compute_narrows_the_range(tiny: GgufFile) -> None:
    model = scaled(tiny, 1000)
    guess, known = plan(model, MACHINE).speed, plan(model, replace(MACHINE, compute_scale=0.5)).speed
    assert guess is not None
    assert known is not None
    assert known.expected < guess.expected
    assert known.high / known.low < guess.high / guess.low


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_can_be_planned(tmp_path: Path, arch: str) -> None:
    model = read_gguf(make_gguf(tmp_path / "m.gguf", arch=arch))
    got = plan(model, MACHINE)
    assert got.verdict == "fits"
    assert got.place.process_ram == PROCESS_BYTES + router_copies(model)
    assert got.speed is not None
    assert got.speed.expected > 0


def test_detecting_this_machine(tmp_path: Path) -> None:
    here = Machine.detect(tmp_path / "not" / "there" / "yet")
    assert 0 < here.ram_available <= here.ram_total
    assert here.cores >= 1
    assert here.disk_free is not None


def test_a_table_of_rows_is_no_work(tmp_path: Path) -> None:
    """A token looks up a few rows of a table; the plan of a model whose table is many times the rest is no slower."""
    small = read_gguf(make_gguf(tmp_path / "small.gguf", arch="qwen4exp", n_layer=4))
    larger = [
        replace(t, dims=(t.dims[0], t.dims[1] * 1000), nbytes=t.nbytes * 1000)
        if t.name == "per_layer_token_embd.weight"
        else t
        for t in small.tensors
    ]
    added = sum(t.nbytes for t in larger) - sum(t.nbytes for t in small.tensors)
    assert added > 0
    b = small.bytes
    large = replace(
        small,
        tensors=tuple(larger),
        bytes=replace(b, embeddings=b.embeddings + added, total=b.total + added),
    )
    assert compute_seconds(large, MACHINE) == pytest.approx(compute_seconds(small, MACHINE))
    assert prompt_token_seconds(large, MACHINE) == pytest.approx(prompt_token_seconds(small, MACHINE))
    assert large.active_bytes_per_token == small.active_bytes_per_token < large.bytes.dense
