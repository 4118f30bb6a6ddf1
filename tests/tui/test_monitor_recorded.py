"""Pictures of recorded sessions: the guide, and a 48 x 128 model that streamed, in each size and colour mode.

The recordings are real: see tests/recordings/README.md for how they were made.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from flashmoe.monitor.recording import Recording
from tests.colour_modes import MODES, finish, prepare, theme
from tests.places import RECORDINGS
from tui.screens.experts import ExpertMapView
from tui.screens.replay import ReplayApp
from tui.widgets.monitor.column import MonitorColumn
from tui.widgets.monitor.lines import Lines

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


async def lines_of(app: ReplayApp, size: tuple[int, int], *, whole_map: bool = False) -> list[str]:
    """The text of the panes, or of the map on the whole screen."""
    async with app.run_test(size=size) as pilot:
        if whole_map:
            await open_map(pilot)
        else:
            app.look()
            await pilot.pause()
        kind: type[Lines] = ExpertMapView if whole_map else MonitorColumn
        return [line.plain for line in app.screen.query_one(kind)._shown]


@pytest.mark.parametrize("mode", ["24-bit", "none"])
async def test_layers_in_vram_have_rows_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str
) -> None:
    """They were just named under a map of the others, which counted as if there were no more."""
    lines = await lines_of(app_for(monkeypatch, tmp_path, "h100-vram", mode), (120, 36), whole_map=True)
    assert "24 × 64, by number · 8 layers in VRAM · 44 % of the others in RAM" in lines[0]
    rows = {int(line[:3]): line for line in lines if line[3:5] == " │"}
    assert list(rows) == list(range(24))
    assert rows[16].startswith(" 16 │ in VRAM ■■■")
    assert all(set(rows[layer][5:].rstrip()) == {"■"} for layer in range(17, 24))
    assert not any("■" in rows[layer] for layer in range(16))
    low = await lines_of(app_for(monkeypatch, tmp_path, "h100-vram", mode), (80, 24), whole_map=True)
    assert not any("■" in line for line in low)  # no room for each: the legend names them
    assert any("in VRAM: layers 16-23" in line for line in low)


async def test_what_vram_holds_and_what_would_help_are_said_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    panes = "\n".join(await lines_of(app_for(monkeypatch, tmp_path, "h100-vram", "24-bit"), (120, 36)))
    assert re.search(r"own 4\.3 · experts 1\.3 · +\d+ % busy", panes)
    panes = "\n".join(await lines_of(app_for(monkeypatch, tmp_path, "h100-mmap", "24-bit"), (120, 36)))
    assert re.search(r"→ +\d+(\.\d)? tok/s", panes)  # the advice with what it brings, beside three curves


async def test_the_speeds_scale_is_the_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A prompt's 308 tokens/s pressed 66 of an answer into the lowest eighth."""
    app = app_for(monkeypatch, tmp_path, "h100-mmap", "24-bit")
    panes = await lines_of(app, (120, 36))
    assert app.feed.speed_scale() == 100
    assert any(line.rstrip(" │").endswith("100 tok/s") for line in panes)
