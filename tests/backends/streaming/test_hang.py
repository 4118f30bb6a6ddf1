"""A disk that hangs for ten seconds in the middle of an answer: the answer is late, and the same as mmap's."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.engine.client import EngineClient
from backends.gguf.file import read_gguf
from backends.interface import Delta, Finished, GenerateRequest, LoadRequest, Sampling
from backends.planner.plan import working_set
from tests.gguf_factory import make_gguf

HANG_S = 10.0


class Disk:
    """A cgroup in which the reads of one disk can be stopped."""

    def __init__(self, path: Path) -> None:
        device = path.stat().st_dev
        self.number = f"{os.major(device)}:{os.minor(device)}"
        root = Path("/sys/fs/cgroup")
        self.old = not (root / "cgroup.controllers").exists()
        self.group = (root / "blkio" if self.old else root) / f"flashmoe-hang-{os.getpid()}"
        self.group.mkdir()

    def limit(self, bytes_s: int | None) -> None:
        """None: no limit."""
        if self.old:
            (self.group / "blkio.throttle.read_bps_device").write_text(f"{self.number} {bytes_s or 0}")
        else:
            (self.group / "io.max").write_text(f"{self.number} rbps={bytes_s or 'max'}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = make_gguf(tmp_path / "m.gguf", n_layer=4, n_expert=32, n_expert_used=2, n_embd=256, n_ff_exp=256)
    with open(path, "rb") as f:
        os.fsync(f.fileno())
    return path


@pytest.fixture
def disk(path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(path)
    except OSError:
        pytest.skip("no cgroup can be made here")
    try:
        disk.limit(1 << 30)
        yield disk
    except OSError:
        pytest.skip("this kernel throttles no reads")
    finally:
        with contextlib.suppress(OSError):
            disk.group.rmdir()


def forget(path: Path) -> None:
    """Drops a file from the page cache."""
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def answer(client: EngineClient, name: str) -> str:
    text = ""
    request = GenerateRequest(id=name, prompt="Why?", sampling=Sampling(temperature=0, max_tokens=24))
    async for event in client.generate(request):
        if isinstance(event, Delta):
            text += event.text
        elif isinstance(event, Finished):
            assert event.reason in ("length", "stop")
    return text


@pytest.mark.parametrize("store", ["pagecache", "pool"])
async def test_a_disk_that_hangs_makes_a_late_answer(path: Path, disk: Disk, tmp_path: Path, store: str) -> None:
    reference = EngineClient(log_path=tmp_path / "mmap.log")
    await reference.load(LoadRequest(path=str(path), n_ctx=256, n_threads=1, backend="mmap"))
    expected = await answer(reference, "a")
    await reference.stop()
    client = EngineClient(log_path=tmp_path / "stream.log")
    budget = working_set(read_gguf(path), None) * 2
    request = LoadRequest(
        path=str(path), n_ctx=256, n_threads=1, backend="stream", store=store, ram_bytes=budget  # type: ignore[arg-type]
    )  # fmt: skip
    try:
        await client.load(request)
        (disk.group / "cgroup.procs").write_text(str(client.pid))
        forget(path)
        disk.limit(1)
        late = asyncio.create_task(answer(client, "b"))
        done, _ = await asyncio.wait({late}, timeout=HANG_S)
        assert not done, "the disk didn't hang"
        disk.limit(None)
        assert await asyncio.wait_for(late, 300) == expected
        assert await asyncio.wait_for(answer(client, "c"), 300) == expected  # the engine is as usable as before
    finally:
        disk.limit(None)
        await client.stop()
