"""The ubatch that reading and computing ask for, within memory; and the time until the first token."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from backends.gguf.file import GgufFile, read_gguf
from backends.gguf.types import TENSOR_TYPES
from backends.planner.kv import attention
from backends.planner.machine import Machine
from backends.planner.plan import PROMPTS, PlanRequest, plan
from backends.planner.prompts import PromptPace, best_ubatch, first_tokens, prompt_pace, staging_bytes
from backends.planner.speed import ATTENTION_S, PROMPT_COST, MeasuredRun, prompt_token_seconds
from tests.gguf_factory import make_gguf


def test_the_ubatch_makes_reading_and_computing_take_equally_long() -> None:
    everything = 1 << 20
    assert best_ubatch(PromptPace(1.0, 0.0, 0.01), everything, lambda _: True)[0] == 512
    assert best_ubatch(PromptPace(15.0, 0.0, 0.01), everything, lambda _: True)[0] == 2048
    assert best_ubatch(PromptPace(500.0, 0.0, 0.01), everything, lambda _: True)[0] == 8192
    assert best_ubatch(PromptPace(500.0, 0.0, 0.01), 3000, lambda _: True)[0] == 2048
    size, why = best_ubatch(PromptPace(500.0, 0.0, 0.01), everything, lambda n: n <= 1024)
    assert size == 1024
    assert "memory" in why


def _shaped(gguf: GgufFile, kind: str, layers: int, *dims: int) -> GgufFile:
    """The header with nothing but expert tensors of one type."""
    number, per_block, block_bytes = next((t, n, b) for t, (name, n, b) in TENSOR_TYPES.items() if name == kind)
    like = next(t for t in gguf.tensors if "_exps." in t.name)
    tensors = tuple(
        msgspec.structs.replace(
            like, name=f"blk.{layer}.ffn_{part}_exps.weight", dims=dims, type=number,
            nbytes=math.prod(dims) // per_block * block_bytes,
        )
        for layer in range(layers) for part in ("gate", "up", "down")
    )  # fmt: skip
    return msgspec.structs.replace(gguf, tensors=tensors, n_experts=dims[2], n_expert_used=10)


def test_a_prompts_token_is_counted_in_weights_by_their_type(tmp_path: Path) -> None:
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf"))
    machine = Machine(ram_total=64 << 30, ram_available=64 << 30, cores=16)
    cost = {kind: prompt_token_seconds(_shaped(gguf, kind, 60, 4096, 1024, 512), machine) for kind in PROMPT_COST}
    for kind, seconds in cost.items():
        assert abs(seconds / cost["Q4_K"] - PROMPT_COST[kind]) < 1e-6
    # 391 B parameters on 16 threads took 29 ms a token: 13 of it for experts, the rest for dense weights and attention
    assert 0.009 < cost["IQ2_XXS"] < 0.03
    half = prompt_token_seconds(_shaped(gguf, "IQ2_XXS", 60, 4096, 1024, 512), machine, n_used=5)
    assert abs(half * 2 - cost["IQ2_XXS"]) < 1e-9
    slow = msgspec.structs.replace(machine, compute_scale=0.5)
    assert abs(prompt_token_seconds(_shaped(gguf, "Q4_K", 60, 4096, 1024, 512), slow) / cost["Q4_K"] - 2) < 1e-9


def test_every_type_that_models_have_has_a_cost() -> None:
    activations = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
    assert {name for name, _, _ in TENSOR_TYPES.values()} - activations == set(PROMPT_COST)


def test_the_plan_waits_by_the_type_until_it_was_measured(tmp_path: Path) -> None:
    """The first token's time and the ubatch come from the type's cost, then from what a run told."""
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=64, n_embd=256, n_ff_exp=512))
    experts = gguf.bytes.experts
    cores = Machine(ram_total=8 << 30, ram_available=4 << 30, cores=1, disk_bytes_s=1e12)
    asked = PlanRequest(ram_bytes=experts // 4)
    unmeasured = plan(gguf, cores, asked)
    token_s = prompt_token_seconds(gguf, cores)
    assert unmeasured.first_token_source == "formula"
    attends = attention(gguf).products(0, 1000) / ATTENTION_S
    assert attends > 0
    assert abs(unmeasured.first_token_s[0][1] - 1000 * token_s - attends) < 1e-9
    told = MeasuredRun(backend="stream", decode_tok_s=1, n_tokens=8, prompt_token_s=3 * token_s)
    measured = plan(gguf, cores, asked, (told,))
    assert abs(measured.first_token_s[0][1] - 3000 * token_s - attends) < 1e-9


def test_attention_is_counted_by_what_layers_see(tmp_path: Path) -> None:
    """Twice the prompt is four times the attention, but where windows end it."""
    full = attention(read_gguf(make_gguf(tmp_path / "m.gguf", n_layer=4)))
    assert full.near == 0
    assert full.products(0, 2000) == 4 * full.products(0, 1000)
    assert full.products(0, 1000) + full.products(1000, 2000) == full.products(0, 2000)
    swa = attention(read_gguf(make_gguf(tmp_path / "s.gguf", arch="gpt-oss", n_layer=4)))
    assert swa.near > 0
    assert swa.window > 0
    far = 100 * swa.window
    assert swa.products(0, far) < (swa.all + swa.near) * far * far / 2
    half = swa.products(0, swa.window // 2) + swa.products(swa.window // 2, far)
    assert abs(half / swa.products(0, far) - 1) < 1e-9
    hybrid = attention(read_gguf(make_gguf(tmp_path / "h.gguf", arch="qwen3next", n_layer=4)))
    assert 0 < hybrid.all < full.all * 4


def test_a_measured_token_is_told_apart_from_its_attention(tmp_path: Path) -> None:
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf", n_layer=4))
    machine = Machine(ram_total=8 << 30, ram_available=4 << 30, cores=1)
    formula = prompt_pace(gguf, machine, 0)
    took = formula.seconds(8000, 8000)
    for times in (0.5, 1.0, 3.0):
        pace = prompt_pace(gguf, machine, 0, token_s=times * took / 8000, measured_at=8000)
        assert abs(pace.seconds(8000, 8000) / took / times - 1) < 1e-9  # the run itself is planned as it was
        assert pace.seconds(1000, 8000) < pace.seconds(8000, 8000) / 8
    short = prompt_pace(gguf, machine, 0, token_s=2 * formula.token_s)
    assert short.token_s == 2 * formula.token_s


def test_a_prompt_takes_its_passes() -> None:
    pace = PromptPace(10.0, 0.0, 0.01)
    assert pace.seconds(512, 512) == 10.0
    assert pace.seconds(4096, 512) == 80.0
    assert abs(pace.seconds(4096, 4096) - 40.96) < 1e-9
    times, source = first_tokens(pace, 4096, (1000, 8000), (), gpu=False)
    assert source == "formula"
    run = MeasuredRun(
        backend="stream", decode_tok_s=1, n_tokens=8, prompt_tokens=1000, prompt_s=2 * times[0][1], n_ubatch=4096
    )
    measured, source = first_tokens(pace, 4096, (1000, 8000), (run,), gpu=False)
    assert source == "measured"
    assert measured[0][1] == 2 * times[0][1]
    assert measured[1] == times[1]


def test_a_plan_tells_the_ubatch_why_and_the_wait(tmp_path: Path) -> None:
    gguf = read_gguf(make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=64, n_embd=256, n_ff_exp=512))
    experts = gguf.bytes.experts
    machine = Machine(ram_total=8 << 30, ram_available=4 << 30, cores=2, disk_bytes_s=1e6)
    slow = plan(gguf, machine, PlanRequest(ram_bytes=experts // 4))
    assert slow.n_ubatch > 512
    assert slow.ubatch_reason
    assert [n for n, _ in slow.first_token_s] == list(PROMPTS)
    assert slow.place.prompt_ram >= staging_bytes(gguf).total(4)
    asked = plan(gguf, machine, PlanRequest(ram_bytes=experts // 4, n_ubatch=600))
    assert (asked.n_ubatch, asked.ubatch_reason) == (600, "")
    assert asked.first_token_s[1][1] > slow.first_token_s[1][1]
    fits = plan(gguf, machine, PlanRequest())
    assert fits.n_ubatch == 512
    assert fits.first_token_s == ()
