"""A real engine under a monitor that keeps what was said, and cgroups that make its machine slow or small."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from backends.engine.client import EngineClient
from backends.gguf.file import read_gguf
from backends.interface import Finished, GenerateRequest, LoadRequest, Sampling, Telemetry
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.verdict import Verdict

_CGROUPS = Path("/sys/fs/cgroup")


def forget(path: Path) -> None:
    """Writes a file out and drops it from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def cgroup(controller: str, files: dict[str, str], files_v1: dict[str, str]) -> Iterator[Path]:
    """A cgroup with these limits; skips where this machine lets nobody make one."""
    old = not (_CGROUPS / "cgroup.controllers").exists()
    root = _CGROUPS / controller if old else _CGROUPS
    if old and controller == "memory":
        # below our own, so that what limits us limits it too
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(",") and (root / path.lstrip("/")).is_dir():
                root = root / path.lstrip("/")
    group = root / f"flashmoe-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no cgroup can be made here")
    try:
        for file, text in (files_v1 if old else files).items():
            try:
                (group / file).write_text(text)
            except OSError:
                pytest.skip(f"this kernel has no {file}")
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def memory_cap(limit: int) -> contextlib.AbstractContextManager[Path]:
    """A cgroup whose processes may hold `limit` bytes, page cache included."""
    return cgroup("memory", {"memory.max": str(limit)}, {"memory.limit_in_bytes": str(limit)})


def disk_cap(file: Path, bytes_s: int) -> contextlib.AbstractContextManager[Path]:
    """A cgroup that may read so many bytes per second from the disk of `file`."""
    device = file.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return cgroup(
        "blkio", {"io.max": f"{number} rbps={bytes_s}"}, {"blkio.throttle.read_bps_device": f"{number} {bytes_s}"}
    )


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

    async def decode_for(self, samples: int, *, tokens: int = 120) -> None:
        """Answers until so many samples were of decoding: random answers end when they like."""
        for seed in range(1, 500):
            await self.answer(3, tokens, seed)
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


def request(model: Path, share: float | None, backend: str = "stream") -> LoadRequest:
    """`share`: of the experts' bytes, what they may hold."""
    ram = int(read_gguf(model).bytes.experts * share) if share else None
    return LoadRequest(path=str(model), backend=backend, n_ctx=1024, n_threads=1, n_ubatch=64, ram_bytes=ram)
