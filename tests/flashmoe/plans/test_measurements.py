"""Measured speeds are remembered, survive damage and concurrency, and change plans."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from backends.gguf.file import read_gguf
from backends.interface import BenchResult, ModelInfo, Usage
from backends.planner.machine import probe_memory
from backends.planner.speed import prompt_token_seconds
from backends.system.disk_probe import probe_disk
from flashmoe.hub.facts import facts_of
from flashmoe.plans import measurements
from flashmoe.plans.planning import _sketch, plan_facts, plan_file, plan_header
from tests.gguf_factory import make_gguf
from tests.places import ROOT


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "m.gguf", n_layer=4)


def info(path: Path, **more: object) -> ModelInfo:
    gguf = read_gguf(path)
    fields: dict[str, object] = {
        "name": "m", "path": str(path), "architecture": "qwen3moe", "quant": "F16", "backend": "stream",
        "backend_reason": "", "n_layers": 4, "n_vocab": 512, "n_ctx": 2048, "n_ctx_train": 2048,
        "file_bytes": gguf.file_bytes, "expert_bytes": gguf.bytes.experts, "dense_bytes": gguf.bytes.dense,
    }  # fmt: skip
    return ModelInfo(**{**fields, **more})  # type: ignore[arg-type]


def usage(**more: object) -> Usage:
    fields: dict[str, object] = {
        "prompt_tokens": 10, "reused_tokens": 0, "completion_tokens": 50, "prefill_s": 1.0, "decode_s": 10.0,
    }  # fmt: skip
    return Usage(**{**fields, **more})  # type: ignore[arg-type]


def test_an_answers_speed_replaces_the_formula(model: Path) -> None:
    here = measurements.machine(measure=False)
    before = plan_file(model, here=here)
    assert before.speed is not None
    assert before.speed.source == "formula"
    measurements.record_answer(info(model), usage())
    after = plan_file(model, here=here)
    assert after.speed is not None
    assert (after.speed.source, after.speed.expected) == ("measured", 5.0)
    renamed = model.rename(model.with_name("other.gguf"))  # it is known by its contents
    assert plan_file(renamed, here=here).speed == after.speed
    other = make_gguf(model.with_name("third.gguf"), n_layer=5)
    assert measurements.runs_of(read_gguf(other)) == ()


def test_what_says_nothing_about_speed_is_not_remembered(model: Path) -> None:
    measurements.record_answer(info(model), usage(completion_tokens=3))
    measurements.record_answer(info(model), usage(completion_tokens=None))
    measurements.record_answer(info(model, lossy="fewer experts"), usage())
    measurements.record_answer(info(model, backend="remote"), usage())
    measurements.record_answer(replace(info(model), path="/does/not/exist.gguf"), usage())
    assert measurements.runs_of(read_gguf(model)) == ()


def test_a_benchmark_tells_the_disks_speed_too(model: Path) -> None:
    result = BenchResult(
        backend="stream", model="m", load_s=1, load_read_bytes=1, prefill_tok_s=1, decode_tok_s=7.0,
        compute_s_per_token=0.1, stall_s_per_token=0.02, hit_rate=0.9, read_bytes_per_token=1e6, disk_bytes_s=2.5e9,
        bound_tok_s=8, bound_share=0.9, peak_rss_bytes=1, budget_bytes=None, major_faults=0, logits_sha256="",
        tokens=32,
    )  # fmt: skip
    measurements.record_bench(result, info(model))
    here = measurements.machine(model.parent, measure=False)
    assert here.disk_bytes_s == 2.5e9
    assert here.disk_source == "measured just now"
    (run,) = measurements.runs_of(read_gguf(model))
    assert (run.decode_tok_s, run.hit_rate, run.expert_ram_bytes) == (7.0, 0.9, None)
    limited = info(model, budget_bytes=100_000)
    measurements.record_bench(replace(result, decode_tok_s=2.0), limited)
    assert measurements.runs_of(read_gguf(model))[-1].expert_ram_bytes == 100_000
    for _ in range(30):
        measurements.record_bench(result, info(model))
    assert len(measurements.runs_of(read_gguf(model))) == measurements.MAX_RUNS


def test_probes_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def probe(folder: object, files: object = ()) -> float:
        calls.append(folder)
        return 1.5e9

    monkeypatch.setattr(measurements, "probe_disk", probe)
    monkeypatch.setattr(measurements, "probe_memory", lambda: 9e9)
    assert measurements.machine(tmp_path, measure=False).disk_bytes_s is None
    assert not calls
    first, second = measurements.machine(tmp_path), measurements.machine(tmp_path)
    assert len(calls) == 1
    assert (first.disk_bytes_s, first.memory_bytes_s) == (second.disk_bytes_s, second.memory_bytes_s) == (1.5e9, 9e9)
    later = time.time() + 31 * 86400
    monkeypatch.setattr(measurements.time, "time", lambda: later)
    measurements.machine(tmp_path)
    assert len(calls) == 2


def test_the_real_probes_measure_something(tmp_path: Path) -> None:
    assert probe_memory(0.02) > 1e8
    speed = probe_disk(tmp_path, seconds=0.1)  # None on a file system without O_DIRECT
    assert speed is None or speed > 1e6
    assert list(tmp_path.iterdir()) == []
    assert probe_disk(tmp_path / "missing") is None
    with open(tmp_path / "holes", "wb") as sparse:
        sparse.truncate(1 << 40)
    holes = probe_disk(tmp_path / "missing", [tmp_path / "holes"])
    assert holes is None  # a sparse file is not measured: it reads at memory's speed


def test_a_damaged_or_unwritable_file_is_no_failure(model: Path) -> None:
    measurements.record_answer(info(model), usage())
    measurements.file_path().write_bytes(b'{"disks": 3')
    assert measurements.runs_of(read_gguf(model)) == ()
    measurements.record_answer(info(model), usage())
    assert len(measurements.runs_of(read_gguf(model))) == 1
    measurements.file_path().unlink()
    measurements.file_path().mkdir()
    measurements.record_answer(info(model), usage())
    assert measurements.runs_of(read_gguf(model)) == ()


def test_several_programs_record_at_once(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flashmoe.plans.measurements import record_disk, _change\n"
        "for i in range(20): _change(lambda d: d.compute.append(float(sys.argv[1])))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(i)], cwd=ROOT) for i in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    kept = measurements._read().compute
    assert sorted(kept) == sorted(float(i) for i in range(4) for _ in range(20))


def test_a_catalogues_figures_are_planned_like_the_header(model: Path) -> None:
    gguf = read_gguf(model)
    here = replace(measurements.machine(measure=False), disk_bytes_s=1e9)
    rough, exact = plan_facts(facts_of(gguf), here), plan_header(gguf, None, here)
    assert rough.verdict == exact.verdict == "fits"
    assert rough.budgets.best == exact.budgets.best
    assert rough.speed is not None
    assert exact.speed is not None
    assert rough.speed.expected == pytest.approx(exact.speed.expected, rel=0.2)
    assert prompt_token_seconds(_sketch(facts_of(gguf)), here) == pytest.approx(
        prompt_token_seconds(gguf, here), rel=0.5
    )
    big = replace(facts_of(gguf), expert_bytes=200 << 30, dense_bytes=6 << 30, expert_bytes_per_token=4 << 30)
    assert plan_facts(big, here).verdict in ("streams", "no_memory")
