"""Pictures of recorded sessions: the guide, and a 48 x 128 model that streamed, in each size and colour mode.

The recordings are real: see tests/recordings/README.md for how they were made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from flashmoe.monitor.recording import Recording
from tests.colour_modes import MODES, finish, prepare, theme
from tests.places import RECORDINGS
from tui.screens.experts import ExpertMapView
from tui.screens.replay import ReplayApp

NAMES = ("guide", "48x128")
SIZES = [(80, 24), (120, 36), (200, 60)]


def app_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, mode: str) -> ReplayApp:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    prepare(monkeypatch, mode)
    app = ReplayApp(Recording(RECORDINGS / f"{name}.fmrec"), theme=theme(mode))
    finish(app, mode)
    app.player.paused = True
    app.player.seek(app.player.duration * 0.9)
    return app


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_panes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any, name: str, mode: str) -> None:
    assert snap_compare(app_for(monkeypatch, tmp_path, name, mode), terminal_size=(120, 36))


async def open_map(pilot: Pilot[Any]) -> None:
    await pilot.press("e", "h")
    await pilot.pause()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", NAMES)
def test_map(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any, name: str, size: tuple[int, int]
) -> None:
    app = app_for(monkeypatch, tmp_path, name, "24-bit")
    assert snap_compare(app, terminal_size=size, run_before=open_map)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", NAMES)
def test_map_in_colour_modes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any, name: str, mode: str
) -> None:
    app = app_for(monkeypatch, tmp_path, name, mode)
    assert snap_compare(app, terminal_size=(120, 36), run_before=open_map)


@pytest.mark.parametrize("name", NAMES)
async def test_a_recorded_map_says_what_it_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    app = app_for(monkeypatch, tmp_path, name, "24-bit")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_map(pilot)
        shown = "\n".join(line.plain for line in app.screen.query_one(ExpertMapView)._shown)
        assert "1 cell = " in shown
        assert "in RAM" in shown
        assert "on SSD" in shown


def test_two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any) -> None:
    """A line for each, as nvidia-smi had them (benchmarks/results/gpu.md)."""
    assert snap_compare(app_for(monkeypatch, tmp_path, "h100x2-stream", "24-bit"), terminal_size=(120, 36))
