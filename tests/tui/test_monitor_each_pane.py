"""Pictures of each single pane in each colour mode, from recorded sessions (tests/recordings/README.md)."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import pytest
from textual.app import App, ComposeResult

from flashmoe import paths
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.recording import Recording
from flashmoe.monitor.replay import Player
from tests.colour_modes import MODES, finish, prepare, theme
from tests.places import RECORDINGS
from tui import themes
from tui.widgets.monitor.column import MonitorColumn
from tui.widgets.monitor.strip import MonitorStrip

WIDTH = 44
# name -> (section, recording, rows of the screen)
PANES = {
    "memory": ("memory", "48x128", 8),
    "vram": ("memory", "h100-stream", 9),
    "ssd": ("SSD", "48x128", 6),
    "token": ("token", "48x128", 5),
    "verdict": ("verdict", "48x128", 6),
    "map": ("experts", "guide", 12),
    "curve": ("hit rate by budget", "48x128", 10),
    "graphs": ("over time", "48x128", 22),
    "server": ("server", "remote", 4),
}


@cache
def feed_at_the_end(name: str) -> MonitorFeed:
    feed = MonitorFeed()
    if name == "remote":
        local = feed_at_the_end("48x128")
        assert local.model is not None
        feed.frame = local.frame
        feed.model = msgspec.structs.replace(local.model, backend="remote", path="http://127.0.0.1:8080/v1")
        return feed
    player = Player(Recording(RECORDINGS / f"{name}.fmrec"), feed)
    player.seek(player.duration * 0.9)
    return feed


class OnePane(MonitorColumn):
    """One section of the column in a frame of its own."""

    DEFAULT_CSS = "OnePane { width: 1fr; height: 1fr; }"

    def __init__(self, feed: MonitorFeed, title: str) -> None:
        super().__init__(feed, with_map=title == "experts")
        self._only = title

    def _needs(self) -> dict[str, tuple[int, int]]:
        return {title: rows for title, rows in super()._needs().items() if title == self._only}


class PaneApp(App[None]):
    def __init__(self, pane: MonitorColumn | MonitorStrip, mode: str) -> None:
        super().__init__()
        self.pane = pane
        for each in themes.load_themes(paths.builtin_themes_dir()).themes.values():
            self.register_theme(each)
        self.theme = theme(mode) or themes.DEFAULT_THEME
        finish(self, mode)

    def compose(self) -> ComposeResult:
        yield self.pane


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PANES)
def test_pane(monkeypatch: pytest.MonkeyPatch, snap_compare: Any, name: str, mode: str) -> None:
    title, recording, rows = PANES[name]
    prepare(monkeypatch, mode)
    pane = OnePane(feed_at_the_end(recording), title)
    assert len(pane.make_lines(WIDTH, rows)) == rows  # there is something to take a picture of
    assert snap_compare(PaneApp(pane, mode), terminal_size=(WIDTH, rows))


@pytest.mark.parametrize("mode", MODES)
def test_strip(monkeypatch: pytest.MonkeyPatch, snap_compare: Any, mode: str) -> None:
    prepare(monkeypatch, mode)
    assert snap_compare(PaneApp(MonitorStrip(feed_at_the_end("48x128")), mode), terminal_size=(80, 2))


def test_the_panes_are_all_there_are() -> None:
    """A pane that is added needs its pictures."""
    from tui.widgets.monitor.column import _SECTIONS

    assert {title for title, *_ in _SECTIONS} == {section for section, _, _ in PANES.values()}
