"""`replay` and `top` as apps: the same panes over a recording and over the socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.recording import Recorder, Recording
from flashmoe.monitor.watching import engines
from tests.monitor_demo import GUIDE, DemoEngine
from tui.screens.experts import ExpertMapView, ExpertsScreen
from tui.screens.replay import ReplayApp, ReplayBar
from tui.screens.top import TopApp
from tui.screens.watch import WatchTitle
from tui.widgets.monitor.column import MonitorColumn


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "run.fmrec"
    engine, recorder = DemoEngine("capped", **GUIDE), Recorder(path)
    recorder.model(engine.info)
    for _ in range(120):
        recorder.sample(engine.step())
        recorder.expert_map(engine.map())
    recorder.close()
    return path


def text(app: Any, kind: Any) -> str:
    return "\n".join(line.plain for line in app.query_one(kind)._shown)


@pytest.mark.parametrize("size", [(120, 36), (80, 24)], ids=str)
def test_replay_picture(recorded: Path, snap_compare: Any, size: tuple[int, int]) -> None:
    app = ReplayApp(Recording(recorded), theme="ember")
    app.player.paused = True

    async def ready(pilot: Pilot[int]) -> None:
        await pilot.press("end", "left")
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=ready)


async def test_replay_keys(recorded: Path) -> None:
    app = ReplayApp(Recording(recorded))
    app.player.paused = True
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("right", "right", "pagedown", "left")
        assert app.player.position == pytest.approx(49.5)
        await pilot.press("plus", "plus")
        assert app.player.speed == 4.0
        await pilot.press("minus")
        assert app.player.speed == 2.0
        assert "2×" in text(app, ReplayBar)
        await pilot.press("home")
        assert app.player.position == 0.0
        await pilot.press("space")
        for _ in range(6000):
            if app.player.position > 0.4:
                break
            await asyncio.sleep(0.05)
        assert app.player.position > 0.4
        await pilot.press("end")
        assert "bound by the" in text(app, MonitorColumn)
        assert "layer 0" in text(app, ExpertMapView)
        await pilot.press("t")
        assert app.feed.span[0] == "10 min"
        await pilot.press("e")
        assert isinstance(app.screen, ExpertsScreen)
        await pilot.press("escape")
        assert not isinstance(app.screen, ExpertsScreen)
        await pilot.press("q")
    assert app.return_code == 0


async def test_top_follows_and_says_the_end(tmp_path: Path) -> None:
    engine = DemoEngine("capped", **GUIDE)
    live = LiveMonitor(lambda sample: None, interval_s=0.05)
    await live.start()
    live.model_loaded(engine.info)
    live.expert_map(engine.map())
    ((pid, path),) = engines()
    app = TopApp(path, pid)
    try:
        async with app.run_test(size=(120, 36)) as pilot:
            for _ in range(15_000):
                await asyncio.sleep(0.02)
                if app.feed.frame is not None and app.feed.map is not None:
                    break
            await pilot.pause()
            assert "demo-30B-A3B" in text(app, WatchTitle)
            assert "RAM" in text(app, MonitorColumn)
            await live.stop()
            for _ in range(15_000):
                await asyncio.sleep(0.02)
                if app.ended:
                    break
            assert "has ended" in text(app, WatchTitle)
            assert "RAM" in text(app, MonitorColumn)
    finally:
        await live.stop()


async def test_top_on_a_narrow_screen_has_its_map_in_the_column(tmp_path: Path) -> None:
    live = LiveMonitor(lambda sample: None, interval_s=0.05)
    await live.start()
    engine = DemoEngine("capped", **GUIDE)
    live.model_loaded(engine.info)
    live.expert_map(engine.map())
    ((pid, path),) = engines()
    app = TopApp(path, pid)
    try:
        async with app.run_test(size=(80, 30)) as pilot:
            for _ in range(15_000):
                await asyncio.sleep(0.02)
                if app.feed.map is not None and app.feed.frame is not None:
                    break
            app.look()
            await pilot.pause()
            assert "on SSD" in text(app, MonitorColumn)
            assert not app.query_one(ExpertMapView).display
    finally:
        await live.stop()
