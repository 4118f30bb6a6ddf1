"""The ubatch that reading and computing ask for, within memory; and the time until the first token."""

from __future__ import annotations

from pathlib import Path

from backends.gguf.file import read_gguf
from backends.planner.machine import Machine
from backends.planner.plan import PROMPTS, PlanRequest, plan
from backends.planner.prompts import PromptPace, best_ubatch, first_tokens, staging_bytes
from backends.planner.speed import MeasuredRun
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
