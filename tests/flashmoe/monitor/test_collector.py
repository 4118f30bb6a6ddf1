"""The collector against the kernel's own counters, with real reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backends.interface import Telemetry
from backends.system import cgroups
from backends.system.libc import cached_bytes
from flashmoe.monitor import procfs
from flashmoe.monitor.collector import Collector, Sampler
from flashmoe.monitor.disk import Device, PageCacheMeter, split_files
from flashmoe.monitor.frame import Deriver
from flashmoe.monitor.gpu import GpuMeter
from flashmoe.monitor.sample import Sample

MIB = 1 << 20

# Reads a file past the page cache and then waits to be looked at.
READER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer, done = mmap.mmap(-1, 1 << 20), 0
print("ready", flush=True)
sys.stdin.readline()
while (n := os.preadv(fd, [buffer], done)) > 0:
    done += n
print(done, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    with open(path, "wb") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
    return path


def uncache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def has_direct_io(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return Device(path).read() is not None


def test_bytes_read_agree_with_the_kernel_and_with_what_was_read(big_file: Path) -> None:
    if not has_direct_io(big_file):
        pytest.skip("the temporary folder is on no disk with O_DIRECT")
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(big_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    collector = Collector(reader.pid, big_file)
    try:
        assert reader.stdout.readline() == "ready\n"
        before = collector.sample()
        reader.stdin.write("go\n")
        reader.stdin.flush()
        done = int(reader.stdout.readline())
        after = collector.sample()
        kernel = next(
            int(line.split()[1])
            for line in Path(f"/proc/{reader.pid}/io").read_text().splitlines()
            if line.startswith("read_bytes")
        )
        assert before.process is not None
        assert after.process is not None
        assert before.process.read_bytes is not None
        assert after.process.read_bytes == kernel
        grown = after.process.read_bytes - before.process.read_bytes
        assert grown == pytest.approx(done, rel=0.01)
        # The device saw at least that much, and the rates tell the engine from others.
        assert before.disk is not None
        assert after.disk is not None
        assert after.disk.read_bytes - before.disk.read_bytes >= grown * 0.99
        deriver = Deriver()
        deriver.push(before)
        frame = deriver.push(after)
        assert frame.read_s == pytest.approx(grown / (after.t - before.t))
        assert frame.others_s is not None
        assert frame.others_s >= 0
    finally:
        reader.communicate("end\n", timeout=300)
        collector.close()


def test_page_cache_of_a_file_that_was_read(big_file: Path) -> None:
    uncache(big_file)
    meter = PageCacheMeter([big_file])
    if meter.read() is None:
        pytest.skip("this kernel has no cachestat")
    assert meter.read() == pytest.approx(0, abs=MIB)
    with open(big_file, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no readahead beyond what is read
        file.read(32 * MIB)
    assert meter.read() == pytest.approx(32 * MIB, abs=MIB)
    fd = os.open(big_file, os.O_RDONLY)
    assert cached_bytes(fd, 0, 16 * MIB) == 16 * MIB
    assert cached_bytes(fd, 48 * MIB, 16 * MIB) == pytest.approx(0, abs=MIB)
    os.close(fd)
    meter.close()


def test_a_large_file_is_looked_at_in_pieces(big_file: Path) -> None:
    meter = PageCacheMeter([big_file, big_file, big_file], spend_s=0.0)
    first = meter.read()
    if cached_bytes(os.open(big_file, os.O_RDONLY), 0, MIB) is None:
        pytest.skip("this kernel has no cachestat")
    assert first is None  # one piece of three was seen: a sum would be a lie
    meter.read()
    assert meter.read() is not None
    meter.close()


def test_memory_adds_up() -> None:
    memory = procfs.memory()
    assert memory is not None
    assert 0 < memory.free <= memory.total
    assert 0 <= memory.cached < memory.total
    assert 0 < memory.available <= memory.total


def test_own_process_memory_and_cpu() -> None:
    block = bytearray(os.urandom(48 * MIB))
    process = procfs.process(os.getpid())
    assert process is not None
    assert process.rss_anon is not None
    assert process.rss_anon > len(block)
    assert process.cpu_s is not None
    assert process.cpu_s == pytest.approx(time.process_time(), abs=0.5)
    assert process.threads == threading.active_count() or process.threads is not None


def test_a_process_that_is_gone_is_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert procfs.process(child.pid) is None
    collector = Collector(child.pid)
    assert collector.sample().process is None
    collector.close()


def test_a_zombie_is_gone_too() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    for _ in range(15_000):
        if Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.02)
    assert procfs.process(child.pid) is None
    child.wait()


def test_no_gpu_is_said_and_amd_is_read_from_sysfs(tmp_path: Path) -> None:
    gpus, note = GpuMeter(tmp_path).read()
    if gpus:
        pytest.skip("this machine has a GPU")
    assert note
    device = tmp_path / "card0" / "device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text("8589934592\n")
    (device / "mem_info_vram_used").write_text("1073741824\n")
    (device / "gpu_busy_percent").write_text("37\n")
    gpus, note = GpuMeter(tmp_path).read()
    assert note is None
    assert (gpus[0].total, gpus[0].used, gpus[0].busy) == (8 << 30, 1 << 30, 0.37)


def test_least_cgroup_limit_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("1\n")
    (tmp_path / "outer" / "memory.max").write_text("1000000\n")
    (tmp_path / "outer" / "memory.current").write_text("400000\n")
    (tmp_path / "outer" / "memory.stat").write_text("anon 100000\nfile 300000\n")
    monkeypatch.setattr(cgroups, "folders", lambda *_: [(2, inner, tmp_path)])
    assert cgroups.CgroupMemory().read() == (1_000_000, 400_000, 300_000)


def test_the_sampler_delivers_with_the_engines_counters(tmp_path: Path) -> None:
    collector = Collector(os.getpid())
    seen: list[Sample] = []
    enough = threading.Event()

    def take(sample: Sample) -> None:
        seen.append(sample)
        if len(seen) >= 4:
            enough.set()

    collector.telemetry(Telemetry(t=1.0, decode_tokens=7))
    sampler = Sampler(collector, take, 0.05)
    sampler.start()
    assert enough.wait(300)
    sampler.stop()
    collector.close()
    assert [s.t for s in seen] == sorted(s.t for s in seen)
    assert seen[-1].telemetry is not None
    assert seen[-1].telemetry.decode_tokens == 7


def test_files_of_a_split_model(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        part.touch()
    assert split_files(parts[0]) == parts
    alone = tmp_path / "just-a-name-of-mine.gguf"
    assert split_files(alone) == [alone]
