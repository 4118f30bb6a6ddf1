"""The watch socket: its owner's alone, read-only, and nobody waits for a slow watcher."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from backends.engine import watch_socket
from backends.engine.watch_socket import WatchServer
from backends.interface import Telemetry
from flashmoe import paths
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.recording import Recording, RecordingError
from flashmoe.monitor.watching import Watcher, engines
from tests.monitor_demo import GUIDE, DemoEngine
from tests.places import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # Deeper than a socket's address may be long.
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    monkeypatch.setenv("FLASHMOE_HOME", str(deep))
    return deep


async def until(condition: object, seconds: float = 300.0) -> None:
    assert callable(condition)
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


async def test_only_the_owner_can_open_it(tmp_path: Path) -> None:
    server = WatchServer(tmp_path, lambda: [b"hello"])
    await server.start()
    try:
        mode = server.path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        first = await anext(aiter(watch_socket.watch(server.path)))
        assert first == b"hello"
        assert [pid for pid, _ in watch_socket.running(tmp_path)] == [os.getpid()]
    finally:
        await server.stop()
    assert not server.path.exists()


async def test_what_a_watcher_sends_is_ignored(tmp_path: Path) -> None:
    server = WatchServer(tmp_path, lambda: [])
    await server.start()
    try:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(server.path))
        client.setblocking(False)
        await until(lambda: server.watchers == 1)
        client.send(b'{"cancel": 1}' * 1000)
        server.publish(b"still here")
        await asyncio.sleep(0.1)
        assert client.recv(100) == b"\x0a\x00\x00\x00still here"
        client.close()
        await until(lambda: server.watchers == 0)
    finally:
        await server.stop()


async def test_nobody_waits_for_a_watcher_that_does_not_read(tmp_path: Path) -> None:
    server = WatchServer(tmp_path, lambda: [])
    await server.start()
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(server.path))
    try:
        await until(lambda: server.watchers == 1)
        for _ in range(200):
            server.publish(b"x" * 100_000)  # 20 MB
            await asyncio.sleep(0)
        writer = next(iter(server._writers))
        assert writer.transport.get_write_buffer_size() < 5 << 20
    finally:
        client.close()
        await server.stop()


def test_sockets_of_the_dead_are_removed(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys\nfrom pathlib import Path\nfrom backends.engine.watch_socket import WatchServer\n"
        "async def main():\n    await WatchServer(Path(sys.argv[1]), list).start()\n    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    assert watch_socket.running(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_second_terminal_sees_what_the_first_does(tmp_path: Path) -> None:
    engine = DemoEngine("capped", **GUIDE)
    here = MonitorFeed()
    live = LiveMonitor(lambda sample: here.push(sample) and None, interval_s=0.05)
    await live.start()
    there = MonitorFeed()
    watcher = Watcher(there)
    try:
        live.engine_started(os.getpid())
        live.model_loaded(engine.info)
        live.telemetry(Telemetry(t=1.0, decode_tokens=3, decode_s=1.0, n_active=1))
        live.expert_map(engine.map())
        live.record(tmp_path / "r.fmrec")
        ((pid, path),) = engines()
        assert pid == os.getpid()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

        async def follow() -> None:
            async for _ in watcher.follow(path):
                pass

        task = asyncio.create_task(follow())
        # The greeting brings model and map at once, samples follow.
        await until(lambda: there.map is not None and there.frame is not None and there.frame.phase == "decode")
        assert live.maps_wanted
        assert there.model is not None
        assert there.model.name == engine.info.name
        live.telemetry(Telemetry(t=2.0, decode_tokens=13, decode_s=2.0, n_active=1))
        await until(lambda: there.frame is not None and there.frame.tok_s == 10.0)
        await until(lambda: here.frame is not None and here.frame.tok_s == 10.0)
        live.model_loaded(None)
        await until(lambda: there.model is None)
        with pytest.raises(RecordingError):
            live.record(tmp_path / "r.fmrec")
        assert live.recording == tmp_path / "r.fmrec"
    finally:
        await live.stop()
    await asyncio.wait_for(task, 300)  # the watcher's end comes with the program's
    assert watcher.problem is None
    assert engines() == []
    recording = Recording(tmp_path / "r.fmrec")
    assert any(s.telemetry is not None and s.telemetry.decode_tokens == 13 for s in recording.samples)


async def test_an_unusable_runtime_folder_stops_nothing(home: Path) -> None:
    home.mkdir(parents=True)  # noqa: ASYNC240
    paths.runtime_dir().write_text("in the way")
    seen: list[object] = []
    live = LiveMonitor(seen.append, interval_s=0.02)
    await live.start()
    await until(lambda: len(seen) > 2)
    await live.stop()


async def test_the_command_prints_figures(home: Path) -> None:
    live = LiveMonitor(lambda sample: None, interval_s=0.05)
    await live.start()
    live.model_loaded(DemoEngine("capped", **GUIDE).info)
    try:
        run = [sys.executable, "-m", "flashmoe.cli.main", "top"]

        async def top(*flags: str) -> tuple[int, str, str]:
            process = await asyncio.create_subprocess_exec(
                *run, *flags, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            out, err = await asyncio.wait_for(process.communicate(), 300)
            return process.returncode or 0, out.decode(), err.decode()

        code, out, _ = await top("--once")
        assert code == 0
        assert out.startswith("demo-30B-A3B")
        code, out, _ = await top("--once", "--json")
        assert json.loads(out)["model"]["name"] == "demo-30B-A3B"
        code, out, _ = await top("--list")
        assert str(os.getpid()) in out
        code, _, err = await top("1", "--once")
        assert code == 1
        assert "No engine is running as process 1" in err
    finally:
        await live.stop()
    code, _, err = await top("--once")
    assert code == 1
    assert err.startswith("flashmoe-tui: No engine is running")


async def test_another_version_is_told(tmp_path: Path) -> None:
    server = WatchServer(tmp_path, lambda: [b"\x00not a message"])
    await server.start()
    watcher = Watcher(MonitorFeed())
    with contextlib.suppress(StopAsyncIteration):
        await anext(aiter(watcher.follow(server.path)))
    await server.stop()
    assert watcher.problem is not None
    assert "another version" in watcher.problem


async def test_somebody_elses_folder_or_socket_is_not_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = WatchServer(tmp_path, lambda: [b"hello"])
    await server.start()
    try:
        assert [path for _, path in watch_socket.running(tmp_path)] == [server.path]
        with monkeypatch.context() as m:
            m.setattr(watch_socket.os, "geteuid", lambda: os.getuid() + 1)
            assert watch_socket.running(tmp_path) == []
            with pytest.raises(PermissionError):
                async for _ in watch_socket.watch(server.path):
                    pass
        linked = tmp_path / "linked"
        linked.symlink_to(tmp_path)
        assert watch_socket.running(linked) == []
        with monkeypatch.context() as m:  # the folder is ours, what answers there isn't
            m.setattr(watch_socket, "_uid_behind", lambda _: os.getuid() + 1)
            assert watch_socket.running(tmp_path) == []
            with pytest.raises(PermissionError):
                async for _ in watch_socket.watch(server.path):
                    pass
    finally:
        await server.stop()
