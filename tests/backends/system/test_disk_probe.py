"""The disk probe reads as the pool does: what it asks for, where to, and how much at once. No speed is asserted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from backends.gguf.file import EXPERT_WEIGHT, read_gguf
from backends.system import disk_probe, libc, reader
from backends.system.disk_probe import disk_bytes_per_second, probe_disk, probe_file, read_at_random
from tests.gguf_factory import make_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_gguf(tmp_path_factory.mktemp("probe") / "m.gguf", n_layer=3)
    if disk_bytes_per_second(read_gguf(path), 0.01) is None:
        pytest.skip("this file system has no O_DIRECT")
    return path


class Watched:
    """The real reader; keeps what it was asked for."""

    def __init__(self) -> None:
        self._inner = reader.open_reader()
        self.name = self._inner.name
        self.asked: list[tuple[int, int, int]] = []
        self.under_way: dict[int, tuple[int, int]] = {}
        self.most = 0
        self.huge: set[bool] = set()
        self.closed = False

    def submit(self, requests: Sequence[reader.Request]) -> None:
        for tag, fd, address, size, offset, need in requests:
            for at, length in self.under_way.values():
                assert address + size <= at or at + length <= address  # nobody else's memory
            self.under_way[tag] = (address, size)
            self.asked.append((fd, offset, need))
        self.most = max(self.most, len(self.under_way))
        if requests and not self.huge:
            self.huge.add(advised_huge(requests[0][2]))
        self._inner.submit(requests)

    def collect(self, at_least: int) -> list[tuple[int, int]]:
        done = self._inner.collect(at_least)
        for tag, _ in done:
            del self.under_way[tag]
        return done

    def close(self) -> None:
        self.closed = True
        self._inner.close()


def advised_huge(address: int) -> bool:
    """Whether the mapping of an address asks for huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ", 1)[0]
        if "-" in head and not head.endswith(":"):
            start, end = (int(x, 16) for x in head.split("-"))
            inside = start <= address < end
        elif inside and line.startswith("VmFlags:"):
            return " hg" in line
    return False


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr(reader, "open_reader", lambda: made)
    return made


def test_it_reads_whole_experts_matrices_into_huge_pages_many_at_once(model: Path, watched: Watched) -> None:
    gguf = read_gguf(model)
    assert (disk_bytes_per_second(gguf, 0.05) or 0) > 0
    align = 4096
    with open(model, "rb") as f:
        align = libc.direct_io_alignment(f.fileno())[0]
    slices = {}
    for t in gguf.tensors:
        if EXPERT_WEIGHT.match(t.name):
            size = t.nbytes // t.dims[-1]
            for i in range(t.dims[-1]):
                at = t.offset + i * size
                slices[at - at % align] = at + size - (at - at % align)
    asked = [(offset, need) for _, offset, need in watched.asked]
    assert all(slices.get(offset) == need for offset, need in asked)
    first = asked[: len(slices)]  # a busy machine reads only some of them in that time
    assert len(set(first)) == len(first)  # none twice before each came once
    assert watched.most == gguf.n_expert_used * 3
    assert watched.closed
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert watched.huge == {True}


def test_every_probe_draws_other_places(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for _ in range(2):
        made = Watched()
        monkeypatch.setattr(reader, "open_reader", lambda made=made: made)
        disk_bytes_per_second(read_gguf(model), 0.02)
        orders.append([offset for _, offset, _ in made.asked[:48]])
    assert orders[0] != orders[1]


def test_memory_is_bounded_where_experts_are_large(tmp_path: Path, watched: Watched) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(1 << 20) * 48)
    reads = [(0, i << 24, 1 << 24) for i in range(3)]
    if read_at_random([str(path)], reads, 0.01, 200) is None:
        pytest.skip("this file system has no O_DIRECT")
    assert watched.most == 4


def test_a_file_that_ends_early_gives_no_figure(tmp_path: Path, watched: Watched) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(1 << 20))
    assert read_at_random([str(path)], [(0, 1 << 20, 1 << 20)], 0.05, 4) is None
    assert watched.closed
    assert read_at_random([str(tmp_path / "none")], [(0, 0, 4096)], 0.05, 4) is None


def test_a_model_is_read_at_its_experts_and_any_other_file_in_blocks(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe_file(model, 0.02)[1] == "random experts"
    other = tmp_path / "other"
    other.write_bytes(os.urandom(1 << 20) * 4)
    speed, what = probe_file(other, 0.02)
    assert what == "random 1 MiB blocks"
    assert speed is None or speed > 0
    # a plan's probe of a model is the benchmark's
    called = []
    monkeypatch.setattr(disk_probe, "SCRATCH_BYTES", 1024)
    monkeypatch.setattr(disk_probe, "disk_bytes_per_second", lambda gguf, s: called.append(gguf.path) or 7.0)
    assert probe_disk(tmp_path, [model]) == 7.0
    assert called == [str(model)]
