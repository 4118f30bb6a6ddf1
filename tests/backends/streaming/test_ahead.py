"""What is read before it is needed: urgent reads overtake it, and what many tokens likely use is told by its rate."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.streaming.predictor import Predictor
from backends.system.reader import AioReader, Depth, Request

BLOCK = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[int, int, mmap.mmap]]:
    """A file of 200 blocks, each full of its own number, and memory of the same size."""
    path = tmp_path / "data"
    path.write_bytes(b"".join(bytes([n]) * BLOCK for n in range(200)))
    fd = os.open(path, os.O_RDONLY)
    memory = mmap.mmap(-1, 200 * BLOCK)
    yield fd, ctypes.addressof(ctypes.c_char.from_buffer(memory)), memory
    os.close(fd)


def reader() -> AioReader:
    try:
        return AioReader()
    except OSError as e:
        pytest.skip(f"no Linux AIO here: {e}")


def block(n: int, fd: int, at: int) -> Request:
    return n, fd, at + n * BLOCK, BLOCK, n * BLOCK, BLOCK


def test_urgent_reads_overtake_what_waits_and_all_arrive(
    disk: tuple[int, int, mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, at, memory = disk
    monkeypatch.setattr(AioReader, "UNDER_WAY", 4)
    aio = reader()
    aio.submit([block(n, fd, at) for n in range(100)], urgent=False)
    aio.submit([block(n, fd, at) for n in range(100, 103)])
    done: list[int] = []
    while len(done) < 103:
        got = aio.collect(1)
        assert all(not code for _, code in got)
        done += [tag for tag, _ in got]
        aio.go_on()
    assert max(done.index(n) for n in range(100, 103)) < 12  # behind what was under way, before the rest
    assert sorted(done) == list(range(103))
    assert all(memory[n * BLOCK : (n + 1) * BLOCK] == bytes([n]) * BLOCK for n in range(103))
    assert aio.collect(5) == []
    aio.close()


def test_what_the_kernel_refuses_is_reported_also_where_more_waits(
    disk: tuple[int, int, mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, at, _ = disk
    monkeypatch.setattr(AioReader, "UNDER_WAY", 3)
    aio = reader()
    bad = [(n, 9999, at, BLOCK, 0, BLOCK) for n in range(1000, 1020)]
    aio.submit(bad[:10])
    aio.submit([block(7, fd, at)], urgent=False)
    aio.submit(bad[10:], urgent=False)
    codes: dict[int, int] = {}
    while len(codes) < 21:
        codes.update(aio.collect(1))
    assert codes.pop(7) == 0
    assert set(codes.values()) == {errno.EBADF}
    aio.close()


def test_reads_that_wait_are_given_up_with_the_reader(
    disk: tuple[int, int, mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, at, memory = disk
    monkeypatch.setattr(AioReader, "UNDER_WAY", 1)
    aio = reader()
    aio.submit([block(n, fd, at) for n in range(1, 50)], urgent=False)
    aio.close()
    assert memory[49 * BLOCK] == 0


def test_the_disk_has_as_little_as_keeps_it_busy() -> None:
    depth = Depth(224)
    for _ in range(300):
        depth.looked(depth.reads - 10)  # of ten reads that were done until somebody looked, the queue needs no more
    assert depth.reads == Depth.LEAST
    for _ in range(300):
        depth.looked(max(0, depth.reads - 60))  # a faster disk
    assert 60 < depth.reads <= 224
    for _ in range(20):
        depth.looked(0)
    assert depth.reads == 224


def test_what_nobody_waits_for_leaves_the_disk_to_what_is_urgent(
    disk: tuple[int, int, mmap.mmap], monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, at, memory = disk
    monkeypatch.setattr(Depth, "LEAST", 6)
    aio = reader()
    aio._depth.reads = 6
    aio.submit([block(n, fd, at) for n in range(50)], urgent=False)
    assert len(aio._under_way) == 6
    aio.submit([block(n, fd, at) for n in range(100, 110)])
    assert set(range(100, 110)) <= set(aio._under_way) | {tag for tag, _ in aio._early}  # all at once
    done: list[int] = []
    while len(done) < 60:
        got = aio.collect(1)
        assert all(not code for _, code in got)
        done += [tag for tag, _ in got]
        assert len(aio._under_way) <= 16
        aio.go_on()
    assert sorted(done) == [*range(50), *range(100, 110)]
    assert memory[49 * BLOCK : 50 * BLOCK] == bytes([49]) * BLOCK
    aio.close()


def test_asking_for_what_is_done_finds_all_of_it(disk: tuple[int, int, mmap.mmap]) -> None:
    """The ring of events is looked at before the kernel is asked."""
    fd, at, _ = disk
    aio = reader()
    assert aio.collect(0) == []
    done: list[int] = []
    for start in range(0, 200, 20):
        aio.submit([block(n, fd, at) for n in range(start, start + 20)])
        while len(done) < start + 20:
            done += [tag for tag, _ in aio.collect(0)]
    assert sorted(done) == list(range(200))
    aio.close()


def test_many_tokens_will_use_what_is_used_often_enough() -> None:
    predictor = Predictor(2, 2)
    often, now_and_then, rare = 3, 1, 0
    ids, counts = np.array([rare, now_and_then, often]), np.array([1, 20, 100])
    for _ in range(3):
        predictor._rates.note(0, ids, counts, 128)
    assert predictor._rates.likely(0, 128) == [often, now_and_then]  # 1 - (1 - 1/128)^128 is 0.63
    assert predictor._rates.likely(0, 2) == [often]
    assert predictor._rates.likely(1, 128) == []  # nothing is known
    for _ in range(60):
        predictor._rates.note(0, np.array([5]), np.array([128]), 128)
    assert predictor._rates.likely(0, 2) == [5]
