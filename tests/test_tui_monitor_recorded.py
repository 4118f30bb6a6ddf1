"""Pictures of recorded sessions: the guide, and a 48 x 128 model that streamed, in each size and colour mode.

The recordings are real: see tests/recordings/README.md for how they were made.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.pilot import Pilot

from flashmoe.monitor.recording import Recording
from tui.screens.experts import ExpertMapView
from tui.screens.replay import ReplayApp

FOLDER = Path(__file__).parent / "recordings"
RECORDINGS = ("guide", "48x128")
MODES = ("24-bit", "256", "16", "none", "contrast")
SIZES = [(80, 24), (120, 36), (200, 60)]


class Palette256(LineFilter):
    """What a terminal of 256 colours shows: each colour's nearest of its palette, as Rich chooses it."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text, style and nearest(style), control) for text, style, control in segments]


@lru_cache(4096)
def nearest(style: Style) -> Style:
    def reduced(colour: Any) -> Any:
        if colour is None or colour.is_default:
            return colour
        return type(colour).from_triplet(colour.downgrade(ColorSystem.EIGHT_BIT).get_truecolor())

    return style + Style(color=reduced(style.color), bgcolor=reduced(style.bgcolor))


def app_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, mode: str) -> ReplayApp:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLORTERM", "truecolor")
    for variable in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    if mode == "none":
        monkeypatch.setenv("NO_COLOR", "1")
    theme = {"16": "terminal", "contrast": "contrast"}.get(mode)
    app = ReplayApp(Recording(FOLDER / f"{name}.fmrec"), theme=theme)
    if mode == "256":
        app._filters.append(Palette256())
    app.player.paused = True
    app.player.seek(app.player.duration * 0.9)
    return app


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RECORDINGS)
def test_panes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any, name: str, mode: str) -> None:
    assert snap_compare(app_for(monkeypatch, tmp_path, name, mode), terminal_size=(120, 36))


async def open_map(pilot: Pilot[Any]) -> None:
    await pilot.press("e", "h")
    await pilot.pause()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("name", RECORDINGS)
def test_map(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any, name: str, size: tuple[int, int]
) -> None:
    app = app_for(monkeypatch, tmp_path, name, "24-bit")
    assert snap_compare(app, terminal_size=size, run_before=open_map)


@pytest.mark.parametrize("mode", MODES[1:])
def test_map_in_colour_modes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snap_compare: Any, mode: str) -> None:
    app = app_for(monkeypatch, tmp_path, "48x128", mode)
    assert snap_compare(app, terminal_size=(120, 36), run_before=open_map)


@pytest.mark.parametrize("name", RECORDINGS)
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
