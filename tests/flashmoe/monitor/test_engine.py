"""The monitor over a real engine: the guide through llama.cpp, watched and recorded."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from backends.interface import ChatMessage, EngineError, Finished, GenerateRequest, LoadRequest, ModelInfo, Sampling
from flashmoe import paths
from flashmoe.hub.inuse import holder
from flashmoe.monitor.engine import MonitoredEngine
from flashmoe.monitor.expert_stats import ExpertArrays
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.map_codec import MapFrame
from flashmoe.monitor.recording import Recording
from flashmoe.monitor.replay import Player
from flashmoe.monitor.watching import Watcher, engines

guide = pytest.mark.skipif(not paths.guide_model().is_file(), reason="the guide is not in this checkout")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))


def has_reuse(arrays: ExpertArrays) -> bool:
    return arrays.next_token_reuse is not None and bool(np.isfinite(arrays.next_token_reuse).any())


async def answer(client: MonitoredEngine, number: int) -> Finished:
    request = GenerateRequest(
        id=f"a{number}",
        messages=(ChatMessage("user", "Why do only some experts run for each token?"),),
        sampling=Sampling(temperature=0, max_tokens=60),
    )
    async for event in client.generate(request):
        if isinstance(event, Finished):
            return event
    raise AssertionError("the answer did not finish")


@guide
@pytest.mark.parametrize("backend", ["stream", "mmap"])
async def test_a_watched_and_recorded_engine(tmp_path: Path, backend: str) -> None:
    record = tmp_path / "run.fmrec"
    client = MonitoredEngine(log_path=tmp_path / "engine.log", record=record)
    there = MonitorFeed()
    tokens = 0
    try:
        info = await client.load(LoadRequest(path=str(paths.guide_model()), backend=backend, n_ctx=512))
        ((_, path),) = engines()

        async def follow() -> None:
            async for _ in Watcher(there).follow(path):
                pass

        watching = asyncio.create_task(follow())
        for number in range(3):
            tokens += (await answer(client, number)).usage.completion_tokens or 0
        for _ in range(6000):  # the last counters and the map are on their way
            await asyncio.sleep(0.05)
            telemetry = client.monitor._sample.telemetry if client.monitor._sample is not None else None
            # A map of the first prompt has hits, but no token that followed another.
            seen = there.map is not None and (backend == "mmap" or has_reuse(ExpertArrays(there.map)))
            if seen and telemetry is not None and telemetry.decode_tokens >= tokens - 3:
                break
        pid = client.pid
    finally:
        await client.stop()
    await asyncio.wait_for(watching, 300)
    assert there.model is not None
    assert there.model.name == info.name

    recording = Recording(record)
    last = [sample for sample in recording.samples if sample.telemetry is not None][-1]
    assert last.telemetry is not None
    assert last.telemetry.decode_tokens >= tokens - 3  # an answer's first token comes from its prefill
    assert last.process is not None
    assert last.process.pid == pid
    assert last.process.rss_anon is not None
    assert last.process.rss_anon > 1 << 20
    loaded = [message for message in recording.messages if isinstance(message, ModelInfo)]
    assert loaded[-1].path == "guide.gguf"
    player = Player(recording, MonitorFeed())
    player.seek(player.duration)
    assert any(isinstance(message, MapFrame) for message in recording.messages)

    assert there.map is not None
    arrays = ExpertArrays(there.map)
    assert (arrays.rows, arrays.columns) == (there.map.n_layers, info.n_experts)
    assert arrays.residency is not None
    if backend == "stream":
        telemetry = last.telemetry
        assert telemetry.expert_hits is not None
        assert telemetry.expert_misses is not None
        # Every decoded token chose so many experts in every layer; prefill comes on top.
        least = telemetry.decode_tokens * arrays.rows * info.n_expert_used
        assert telemetry.expert_hits + telemetry.expert_misses >= least
        assert telemetry.reuse_bytes_hist is not None
        assert sum(telemetry.reuse_bytes_hist) > 0
        assert telemetry.next_token_reuse is not None
        assert 0 <= telemetry.next_token_reuse <= 1
        assert arrays.uses is not None
        assert arrays.hits is not None
        assert arrays.misses is not None
        assert int(arrays.hits.sum() + arrays.misses.sum()) > 0
        assert has_reuse(arrays)


@guide
async def test_a_killed_engine_is_seen_and_comes_back(tmp_path: Path) -> None:
    client = MonitoredEngine(log_path=tmp_path / "engine.log")
    there = MonitorFeed()
    try:
        request = LoadRequest(path=str(paths.guide_model()), backend="stream", n_ctx=512)
        await client.load(request)
        ((_, path),) = engines()

        async def follow() -> None:
            async for _ in Watcher(there).follow(path):
                pass

        watching = asyncio.create_task(follow())
        first = client.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        for _ in range(6000):
            await asyncio.sleep(0.05)
            if there.frame is not None and there.model is None and client.pid is None:
                break
        assert there.model is None
        await client.load(request)
        for _ in range(6000):
            await asyncio.sleep(0.05)
            sample = client.monitor._sample
            if there.model is not None and sample is not None and sample.process and sample.process.pid == client.pid:
                break
        assert client.pid != first
        assert there.model is not None
    finally:
        await client.stop()
    await asyncio.wait_for(watching, 300)


@guide
async def test_what_is_loaded_is_held_until_it_is_gone_and_can_be_loaded_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    for path in (first, second):
        await asyncio.to_thread(shutil.copy, paths.guide_model(), path)
    client = MonitoredEngine(log_path=tmp_path / "engine.log", monitored=False)
    try:
        with pytest.raises(EngineError):  # nothing was loaded that could be loaded again
            await client.restart()
        await client.load(LoadRequest(path=str(first), backend="mmap", n_ctx=256))
        assert holder(first) == os.getpid()
        await client.load(LoadRequest(path=str(second), backend="mmap", n_ctx=256))
        assert holder(first) is None
        assert holder(second) == os.getpid()
        with pytest.raises(EngineError):
            await client.load(LoadRequest(path=str(tmp_path / "none.gguf"), backend="mmap", n_ctx=256))
        assert (holder(second) is None) == (client.model is None)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        for _ in range(6000):
            if not client.alive:
                break
            await asyncio.sleep(0.05)
        assert holder(second) is None
        info = await client.restart()
        assert info.path == str(second)
        assert (holder(second), client.loads) == (os.getpid(), 3)
        await client.unload()
        assert holder(second) is None
    finally:
        await client.stop()
