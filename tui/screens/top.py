"""``flashmoe-tui top``: the panes of an engine that runs in another terminal. Read-only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashmoe.monitor.recording import Recorder
from flashmoe.monitor.watching import Watcher
from tui.monitor.redraws import Redraws
from tui.screens.watch import WatchApp


class TopApp(WatchApp):
    """Follows an engine over its socket; says when it ended."""

    what = "top"

    def __init__(
        self,
        path: Path,
        pid: int,
        recorder: Recorder | None = None,
        *,
        engines: int = 1,
        theme: str | None = None,
        **extra: Any,
    ) -> None:
        """`engines`: how many could have been watched; of several the newest is, unless another was named."""
        super().__init__(theme=theme, **extra)
        self._recorder = recorder
        self._path, self._pid = path, pid
        self.ended = False
        self.feed.note = f"watching process {pid}" + (f", 1 of {engines}: top --list" if engines > 1 else "")

    def on_mount(self) -> None:
        """Connects."""
        self.run_worker(self._follow(), exit_on_error=False)

    async def _follow(self) -> None:
        watcher, redraws = Watcher(self.feed, self._recorder), Redraws()
        async for _ in watcher.follow(self._path):
            frame = self.feed.frame
            if frame is None:
                continue
            busy = frame.phase in ("prefill", "decode")
            # a program that watches takes CPUs from the one that computes, as the panes beside the chat would
            if redraws.due(frame.t, (frame.phase, self.feed.model), busy=busy):
                self.look()
        self.ended = True
        self.feed.note = f"process {self._pid} has ended; showing its last figures"
        self.look()
        self.notify(watcher.problem or f"Process {self._pid} has ended.", severity="warning", timeout=10, markup=False)


def run_top(path: Path, pid: int, recorder: Recorder | None = None, engines: int = 1) -> int:
    """Watches in this terminal."""
    app = TopApp(path, pid, recorder, engines=engines)
    app.run()
    return app.return_code or 0
