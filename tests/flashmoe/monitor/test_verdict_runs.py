"""The verdict on real runs: an engine that is capped, on a slow disk, reading a prompt, or computing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gguf_factory import make_gguf
from tests.monitor_runs import Watched, disk_cap, forget, request, watched

__all__ = ["watched"]

SLOW = 24_000_000
"""Bytes per second of the slow disk."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verdict")
    path = make_gguf(folder / "m.gguf", n_layer=4, n_expert=24, n_expert_used=2, n_embd=384, n_ff_exp=384)
    forget(path)  # a prompt's experts come through the page cache
    return path


@pytest.fixture
def slow_disk(model: Path) -> Iterator[Path]:
    """A cgroup whose reads from the model's disk are throttled; skips where this machine lets nobody make one."""
    with disk_cap(model, SLOW) as group:
        yield group


async def test_a_capped_run_on_a_slow_disk_is_bound_by_the_ssd(model: Path, slow_disk: Path, watched: Watched) -> None:
    await watched.load(request(model, 0.25), SLOW)
    assert watched.client.pid is not None
    (slow_disk / "cgroup.procs").write_text(str(watched.client.pid))
    await watched.decode_for(24)
    assert watched.stood_longest("decode") == "ssd"
    verdict = watched.last["decode"]
    assert verdict.headline == "bound by the SSD"
    assert verdict.share is not None
    assert verdict.share > 0.7  # the throttled disk is all but all of a token: near the bound
    assert "more budget" in verdict.advice
    assert verdict.predicted_tok_s is not None
    assert verdict.tok_s is not None
    assert verdict.predicted_tok_s > 1.3 * verdict.tok_s


async def test_a_prompt_on_a_slow_disk_is_bound_by_the_ssd(model: Path, slow_disk: Path, watched: Watched) -> None:
    await watched.load(request(model, 0.35), SLOW)
    assert watched.client.pid is not None
    (slow_disk / "cgroup.procs").write_text(str(watched.client.pid))
    await watched.answer(160, 1)
    assert watched.stood_longest("prefill") == "prefill"
    assert watched.last["prefill"].headline == "reading the prompt, bound by the SSD"


async def test_with_every_expert_in_memory_the_cpu_bounds(model: Path, watched: Watched) -> None:
    await watched.load(request(model, None), 1e9)
    await watched.decode_for(24)
    assert watched.stood_longest("decode") in ("cpu", "hook")
    assert "SSD" not in watched.last["decode"].headline
    assert "budget" not in watched.last["decode"].advice


async def test_a_prompt_in_memory_is_bound_by_computing(model: Path, watched: Watched) -> None:
    await watched.load(request(model, None), 1e9)
    for seed in range(1, 200):
        await watched.answer(900, 1, seed)
        if watched.stood["prefill", "prefill"] > 10:
            break
    assert watched.last["prefill"].headline == "reading the prompt, bound by the CPU"
