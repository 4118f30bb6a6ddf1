"""``flashmoe-tui replay``: a recording in the same panes, with pause, speed and seek."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from textual.content import Content

from flashmoe import figures
from flashmoe.monitor.recording import Recording
from flashmoe.monitor.replay import Player
from tui import keymap as keys
from tui.screens.watch import WatchApp
from tui.widgets.monitor.lines import MUTED, Lines, line

_TICK_S = 0.25


class ReplayBar(Lines):
    """``▶ 2×  1:23 ━━━━━━━──────── 10:00``."""

    DEFAULT_CSS = """
    ReplayBar { height: 1; padding: 0 1; color: $foreground; }
    """

    def __init__(self, player: Player) -> None:
        super().__init__(id="replay-bar")
        self._player = player

    def make_lines(self, width: int, height: int) -> list[Content]:
        """Where the replay is."""
        player = self._player
        state = "end" if player.ended else "paused" if player.paused else "playing"
        sign = "▶" if state == "playing" else "■"
        speed = f"{player.speed:g}×"
        left = f"{sign} {state:<7} {speed:>5}  {figures.clock(player.position):>7} "
        right = f" {figures.clock(player.duration)}"
        room = max(4, width - len(left) - len(right))
        done = round(room * (player.position / player.duration if player.duration else 1.0))
        return [line((left, "bold"), ("━" * done, "$primary"), ("─" * (room - done), MUTED), (right, MUTED))]


class ReplayApp(WatchApp):
    """Plays a recording into the feed."""

    what = "replay"
    BINDINGS = keys.bindings("replay")
    key_ids: ClassVar[list[str]] = [
        "replay.pause",
        "replay.slower",
        "replay.faster",
        "replay.back",
        "replay.forward",
        "watch.span",
        "watch.experts",
        "watch.quit",
    ]

    def __init__(self, recording: Recording, *, speed: float = 1.0, theme: str | None = None, **extra: Any) -> None:
        super().__init__(theme=theme, **extra)
        self.feed.note = recording.path.name + (" (cut short)" if recording.cut else "")
        self.player = Player(recording, self.feed)
        self.player.speed = speed
        self._last = time.monotonic()

    def extra_lines(self) -> list[Lines]:
        """The bar."""
        return [ReplayBar(self.player)]

    def on_mount(self) -> None:
        """Plays on four times a second (twice where the connection is slow)."""
        self._last = time.monotonic()
        self.set_interval(2 * _TICK_S if self.calm else _TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        if not self.player.paused:
            self.player.advance(now - self._last)
            self.look()
        self._last = now

    def action_pause(self) -> None:
        """Stops or goes on; at the end it starts again."""
        if self.player.ended and self.player.paused:
            self.player.seek(0.0)
            self.player.paused = False
        else:
            self.player.paused = not self.player.paused
        self.look()

    def action_speed(self, step: int) -> None:
        """The next speed."""
        self.player.faster(step)
        self.look()

    def action_seek(self, seconds: int) -> None:
        """Jumps by seconds."""
        self.player.seek(self.player.position + seconds)
        self.look()

    def action_seek_to(self, share: int) -> None:
        """Jumps to a share of the whole: 0 the start, 1 the end."""
        self.player.seek(self.player.duration * share)
        self.look()


def run_replay(path: Path, *, speed: float = 1.0) -> int:
    """Replays a recording in this terminal; raises `RecordingError`."""
    app = ReplayApp(Recording(path), speed=speed)
    app.run()
    return app.return_code or 0
