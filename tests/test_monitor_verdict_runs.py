"""The verdict on real runs: an engine that is capped, on a slow disk, reading a prompt, or computing."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from backends.engine.client import EngineClient
from backends.gguf_file import read_gguf
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling, Telemetry
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.verdict import Verdict
from tests.gguf_factory import make_gguf

SLOW = 24_000_000
"""Bytes per second of the slow disk."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verdict")
    path = make_gguf(folder / "m.gguf", n_layer=4, n_expert=24, n_expert_used=2, n_embd=384, n_ff_exp=384)
    with open(path, "rb") as file:  # a prompt's experts come through the page cache
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.fixture
def slow_disk(model: Path) -> Iterator[Path]:
    """A cgroup whose reads from the model's disk are throttled; skips where this machine lets nobody make one."""
    device = model.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    root = Path("/sys/fs/cgroup")
    old = not (root / "cgroup.controllers").exists()
    group = (root / "blkio" if old else root) / f"flashmoe-test-{os.getpid()}"
    file, text = ("blkio.throttle.read_bps_device", f"{number} {SLOW}") if old else ("io.max", f"{number} rbps={SLOW}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no cgroup can be made here")
    try:
        try:
            (group / file).write_text(text)
        except OSError:
            pytest.skip("this kernel throttles no reads")
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


class Watched:
    """An engine with a monitor that keeps which verdict stood for how many samples."""

    def __init__(self, log: Path) -> None:
        self.feed = MonitorFeed()
        self.stood: Counter[tuple[str, str]] = Counter()
        self.last: dict[str, Verdict] = {}
        self.live = LiveMonitor(self._arrived, interval_s=0.25, watchable=False)
        self.client = EngineClient(
            log_path=log, on_event=lambda e: self.live.telemetry(e) if isinstance(e, Telemetry) else None
        )

    def _arrived(self, sample: object) -> None:
        frame = self.feed.push(sample)  # type: ignore[arg-type]
        if frame.phase in ("prefill", "decode"):
            self.stood[frame.phase, self.feed.verdict.kind] += 1
            self.last[frame.phase] = self.feed.verdict

    async def load(self, request: LoadRequest, ceiling: float) -> None:
        info = await self.client.load(request)
        self.live.engine_started(self.client.pid)
        known = self.live.model_loaded(info)
        assert known is not None
        self.live._collector._device = None  # what others read from this machine's disk is not the test's affair
        self.feed.set_model(msgspec.structs.replace(known, disk_bytes_s=ceiling))
        await self.client.watch(0.1)

    async def answer(self, prompt: int, tokens: int, seed: int = 1) -> None:
        ids = tuple((7 + 31 * i * i + 17 * seed) % 500 for i in range(prompt))
        sampling = Sampling(temperature=1, top_p=1, top_k=0, min_p=0, seed=seed, max_tokens=tokens)
        async for event in self.client.generate(GenerateRequest(id=f"a{seed}", tokens=ids, sampling=sampling)):
            if isinstance(event, Finished):
                return

    async def decode_for(self, samples: int) -> None:
        """Answers until so many samples were of decoding: random answers end when they like."""
        for seed in range(1, 500):
            await self.answer(3, 120, seed)
            if sum(n for (where, _), n in self.stood.items() if where == "decode") >= samples:
                return

    def stood_longest(self, phase: str) -> str:
        """The kind that stood longest, apart from what is said before anything is known."""
        known = {kind: n for (where, kind), n in self.stood.items() if where == phase and kind not in ("idle", "none")}
        return max(known, key=lambda kind: known[kind])


@pytest.fixture
async def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    engine = Watched(tmp_path / "engine.log")
    await engine.live.start()
    await engine.client.start()
    try:
        yield engine
    finally:
        await engine.client.stop()
        await engine.live.stop()


def request(model: Path, share: float | None) -> LoadRequest:
    ram = int(read_gguf(model).bytes.experts * share) if share else None
    return LoadRequest(path=str(model), backend="stream", n_ctx=1024, n_threads=1, n_ubatch=64, ram_bytes=ram)


async def test_a_capped_run_on_a_slow_disk_is_bound_by_the_ssd(model: Path, slow_disk: Path, watched: Watched) -> None:
    await watched.load(request(model, 0.35), SLOW)
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
