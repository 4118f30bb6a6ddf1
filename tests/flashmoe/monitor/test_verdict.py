"""The verdict names what bounds the speed, and its predictions come true in a cache that is really run."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from backends.interface import ModelInfo
from flashmoe.monitor.frame import Frame, Work
from flashmoe.monitor.prediction import predict_total_s
from flashmoe.monitor.sample import Gpu
from flashmoe.monitor.verdict import judge
from flashmoe.monitor.vram_advice import layers_that_fit
from tests.monitor_demo import DemoEngine, feed_of, shared_feed

GIB = 1 << 30


def info(**changes: Any) -> ModelInfo:
    return msgspec.structs.replace(DemoEngine("capped").info, **changes)


def frame(work: Work | None = None, **changes: Any) -> Frame:
    fields: dict[str, Any] = {"t": 1.0, "wall": 1.0, "phase": "decode", "decode": work, "cpus": 8}
    return Frame(**{**fields, **changes})


def work(**changes: Any) -> Work:
    fields: dict[str, Any] = {
        "tokens": 10,
        "total_s": 2.0,
        "stall_s": 0.0,
        "hook_s": 0.01,
        "read_bytes": 0,
        "hits": 990,
        "misses": 10,
        "major_faults": 0,
    }
    return Work(**{**fields, **changes})


def test_no_model_and_no_token() -> None:
    assert judge(frame(None), None, None).kind == "none"
    assert judge(frame(None, phase="idle"), info(), 1e9).kind == "idle"


def test_capped_memory_is_bound_by_the_ssd() -> None:
    verdict = shared_feed("capped").verdict
    assert verdict.kind == "ssd"
    assert verdict.headline == "bound by the SSD"
    assert verdict.predicted_tok_s is not None
    assert verdict.tok_s is not None
    assert verdict.predicted_tok_s > verdict.tok_s
    assert verdict.change_bytes is not None
    assert "more budget" in verdict.advice
    assert 0 < (verdict.share or 0) <= 1


def test_warm_experts_are_bound_by_the_cpu() -> None:
    verdict = shared_feed("warm").verdict
    assert verdict.kind == "cpu"
    assert verdict.share is not None
    assert verdict.share > 0.9
    assert verdict.change_bytes is None  # nothing to gain from memory


def test_prefill() -> None:
    verdict = feed_of("prefill", 10)[1].verdict
    assert verdict.kind == "prefill"
    assert "SSD" in verdict.headline
    computing = judge(frame(None, phase="prefill", prefill=work(stall_s=0.1)), info(), 1e9)
    assert computing.kind == "prefill"
    assert "CPU" in computing.headline


def test_a_shared_disk_is_named() -> None:
    verdict = feed_of("shared", 20)[1].verdict
    assert verdict.kind == "ssd"
    assert "shared" in verdict.headline
    assert "other programs read" in verdict.detail


def test_a_slow_disk_is_the_ssd_with_a_high_share_of_its_bound() -> None:
    slow = work(stall_s=1.8, read_bytes=int(1.7 * 200e6))
    verdict = judge(frame(slow), info(), 200e6)
    assert verdict.kind == "ssd"
    assert verdict.share == pytest.approx(0.85)
    assert "85 % of the bound" in verdict.detail


def test_the_hook() -> None:
    hooked = work(hook_s=1.0, stall_s=0.1)
    verdict = judge(frame(hooked, ram_available=64 * GIB), info(), 1e9)
    assert verdict.kind == "hook"
    assert "--backend mmap" in verdict.advice
    assert verdict.predicted_tok_s == pytest.approx(10 / 0.9)
    assert "mmap" not in judge(frame(hooked, ram_available=GIB), info(), 1e9).advice


def test_a_gpu_that_computes() -> None:
    verdict = judge(frame(work(gpu_busy=0.9)), info(n_gpu_layers=48), 1e9)
    assert verdict.kind == "gpu"


def test_a_gpu_that_is_left_alone_is_told_and_its_vram_is_still_offered() -> None:
    reason = "Answers are made without the GPU: it would be slower."
    alone = judge(frame(work()), info(n_gpu_layers=0, gpu_reason=reason), 1e9)
    assert alone.kind == "cpu"
    assert "faster without the GPU" in alone.detail
    assert "GPU" not in judge(frame(work()), info(n_gpu_layers=0), 1e9).detail
    card = (Gpu(index=0, name="card", total=400 * GIB, used=0),)
    assert layers_that_fit(frame(work(), gpus=card), info(n_gpu_layers=0, gpu_reason=reason)) > 0
    assert layers_that_fit(frame(work(), gpus=card), info(n_gpu_layers=0)) == 0  # a build that knows no GPU


def test_mmap_faults_and_what_streaming_would_bring() -> None:
    unmetered = Work(tokens=4, total_s=20.0, read_bytes=int(4e9), major_faults=40_000, cpu_s=4.0)
    verdict = judge(frame(unmetered), info(backend="mmap", n_threads=8), 1.4e9)
    assert verdict.kind == "faults"
    assert "--backend stream" in verdict.advice
    warm = Work(tokens=40, total_s=4.0, read_bytes=0, major_faults=0, cpu_s=30.0)
    assert judge(frame(warm, cpu_cores=7.5), info(backend="mmap"), 1.4e9).kind == "cpu"


def test_pages_that_are_taken_back_before_they_are_used() -> None:
    """Measured: the page cache store inside 0.5 GiB, 180 faults a token, the CPUs waiting."""
    thrash = work(
        tokens=25, total_s=12.2, stall_s=0.14, hook_s=0.75, cpu_s=5.5, major_faults=4510, read_bytes=240_000_000
    )
    verdict = judge(frame(thrash, cpus=2), info(n_threads=2, store="pagecache"), 1e9)
    assert verdict.kind == "faults"
    assert "180 a token" in verdict.detail
    assert verdict.predicted_tok_s is not None
    assert verdict.predicted_tok_s > 4


def test_a_budget_over_what_the_kernel_can_keep() -> None:
    """Measured: a page cache budget of 218 MiB inside 220 MiB, 186 faults a token, the CPU busy fetching them."""
    mib = 1 << 20
    thrash = work(tokens=97, total_s=2.36, stall_s=0.57, hook_s=0.26, cpu_s=1.32, major_faults=18_091, misses=329)
    said = frame(thrash, cpus=2, memory_stall=0.18, resident=192 * mib, budget=218 * mib, ram_cache=186 * mib)
    verdict = judge(said, info(n_threads=1, store="pagecache", expert_bytes=243 * mib), 1e9)
    assert verdict.kind == "faults"
    assert "187 a token" in verdict.detail
    assert verdict.advice == "--ram 0.15, which stays in memory: 41.1 → 50.1 tok/s or more"
    assert verdict.change_bytes == pytest.approx(-60 * mib, abs=mib)
    # The kernel's figure of waits is of all tasks and may be late: far more faults than reads say it alone.
    quiet = judge(msgspec.structs.replace(said, memory_stall=0.02), info(n_threads=1, store="pagecache"), 1e9)
    assert quiet.kind == "faults"
    assert quiet.advice == "--ram 0.15, which stays in memory"
    # Half a fault for each miss is how reads look.
    reading = work(tokens=97, total_s=2.36, stall_s=0.57, hook_s=0.26, cpu_s=1.32, major_faults=2_500, misses=5_000)
    assert judge(frame(reading, cpus=2, memory_stall=0.02), info(n_threads=1), 1e9).kind == "cpu"


def test_swapping_is_memory_pressure() -> None:
    verdict = judge(frame(work(major_faults=5_000), engine_swap=3 * GIB), info(), 1e9)
    assert verdict.kind == "memory"
    assert verdict.change_bytes is not None
    assert verdict.change_bytes < 0
    # Reads of experts are booked as memory stalls by the kernel: those are the SSD's.
    reading = work(stall_s=1.6, read_bytes=int(2e9))
    assert judge(frame(reading, memory_stall=0.7), info(), 1.4e9).kind == "ssd"
    assert judge(frame(work(stall_s=0.02, major_faults=100), memory_stall=0.5), info(), 1.4e9).kind == "memory"
    # Another program's waits are not the engine's.
    assert judge(frame(work(stall_s=0.02), memory_stall=0.5), info(), 1.4e9).kind == "cpu"


def test_a_shared_cpu_is_named() -> None:
    verdict = judge(frame(work(stall_s=0.2, cpu_s=4.0)), info(n_threads=8), 1e9)
    assert verdict.kind == "cpu"
    assert "shared" in verdict.headline
    assert "2.2 of the 8 CPUs" in verdict.detail
    assert verdict.predicted_tok_s is not None
    assert verdict.predicted_tok_s > 5
    alone = judge(frame(work(stall_s=0.02, cpu_s=15.6)), info(n_threads=8), 1e9)
    assert "shared" not in alone.headline


def test_threads_that_are_not_used() -> None:
    verdict = judge(frame(work(stall_s=0.02)), info(n_threads=4), 1e9)
    assert verdict.kind == "cpu"
    assert "--threads 8" in verdict.advice
    # Measured on 2 CPUs that others used: 459 tok/s with one thread, 28 with two, which spin while they wait.
    assert "--threads" not in judge(frame(work(stall_s=0.02), cpu_stall=0.6), info(n_threads=4), 1e9).advice
    assert verdict.predicted_tok_s == pytest.approx(5 / (0.015 + 0.985 / 2), rel=0.05)


@pytest.mark.parametrize(("now", "then"), [(0.25, 0.4), (0.35, 0.6)])
def test_the_prediction_is_within_a_fifth_of_what_happens(now: float, then: float) -> None:
    shape = {"layers": 16, "experts": 64, "used": 4}
    engine, feed = feed_of("capped", 90, budget_share=now, **shape)
    after, feed_after = feed_of("capped", 90, budget_share=then, **shape)
    assert feed.frame is not None
    assert feed.frame.decode is not None
    assert feed.frame.reuse_hist is not None
    done = feed.frame.decode
    total = predict_total_s(feed.frame, done, engine.info, after.budget - engine.budget)
    assert total is not None
    assert feed_after.frame is not None
    assert feed_after.frame.decode is not None
    assert done.tokens / total == pytest.approx(feed_after.frame.decode.tok_s, rel=0.2)
