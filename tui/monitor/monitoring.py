"""Feeds the monitor: a thread that samples the machine, the engine's counters, and the panes that show them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from textual.screen import Screen
from textual.widget import Widget

from backends.interface import ExpertMap, ModelInfo
from tui.engine import messages
from tui.engine.controller import EngineController
from tui.monitor.redraws import Redraws
from tui.notifier import Notifier

if TYPE_CHECKING:
    from pathlib import Path

    from flashmoe.monitor.feed import MonitorFeed
    from flashmoe.monitor.live import LiveMonitor
    from flashmoe.monitor.sample import Sample

MAP_INTERVAL_S = 2.0


class Owner(Notifier, Protocol):
    """What the monitor needs of the app."""

    @property
    def controller(self) -> EngineController:
        """The engine."""
        ...


class Monitoring:
    """Started a moment after the first paint; what is learned before is kept for it."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._column: Widget | None = None
        """Where the panes are beside the chat; None before they are."""
        self._screen: Screen[Any] | None = None
        """The screen that has them, and takes the samples."""
        self._live: LiveMonitor | None = None
        """The engine's monitor, once it runs."""
        self._info: ModelInfo | None = None
        self._panes: list[Any] = []
        self._probed = ""  # the model whose disk was measured last
        self.experts_open = False
        self.feed: MonitorFeed | None = None
        self._redraws = Redraws()

    async def start(self, column: Widget, strip: Widget, *, measure: bool = True, record: Path | None = None) -> None:
        """Mounts the panes into their places and, unless told not to, starts to sample."""
        from flashmoe.monitor.feed import MonitorFeed
        from tui.widgets.monitor.column import MonitorColumn
        from tui.widgets.monitor.strip import MonitorStrip

        self._column, self._screen, self.feed = column, column.screen, MonitorFeed()
        self.feed.set_model(self._info)
        self._panes = [MonitorColumn(self.feed), MonitorStrip(self.feed)]
        await column.mount(self._panes[0])
        await strip.mount(self._panes[1])
        await self.layout_changed()
        if not measure:
            return
        engine = self._owner.controller.engine
        await engine.start_monitor()
        self._live = engine.monitor
        self._info = self._live.model
        self.feed.set_model(self._info)
        if record is not None:
            self.record(record)

    async def take(self, news: messages.MonitorMessage) -> None:
        """A map or a look at the machine, on the screen's own message queue."""
        match news:
            case messages.ExpertMapArrived():
                self._expert_map(news.expert_map)
            case messages.SampleTaken():
                await self._push(news.sample)

    def record(self, path: Path) -> None:
        """Records to a new file from now on; says so, or why not, in a toast."""
        if self._live is None:
            return
        from flashmoe.monitor.recording import RecordingError

        try:
            self._live.record(path)
        except RecordingError as error:
            self._owner.notify(str(error), severity="error", timeout=15, markup=False)
        else:
            self._owner.notify(f"Recording the monitor to {path}.", markup=False)

    async def _push(self, sample: Sample) -> None:
        """A new sample: every pane looks again."""
        idle = sample.telemetry is not None and not sample.telemetry.n_active and not sample.telemetry.n_waiting
        if self.feed is not None:
            frame = self.feed.push(sample)
            busy = self._owner.controller.busy or self._owner.controller.state == "loading"
            hidden = self._hidden()
            if self._redraws.due(sample.t, (busy, frame.phase, hidden), busy=busy) and not hidden:
                self.update_views()
        info = self._info
        if idle and info is not None and not info.disk_bytes_s and self._probed != info.path:
            self._probed = info.path
            if self._screen is not None:
                self._screen.run_worker(self._probe_disk())

    def _hidden(self) -> bool:
        """Whether another screen covers the panes; dialogs let them be seen."""
        if self._screen is None:
            return True
        shown = self._screen.app.screen
        return shown is not self._screen and not shown.is_modal

    def update_views(self) -> None:
        """Every pane that can be seen looks at the feed again."""
        for pane in self._panes:
            if pane.is_attached and pane.display:
                pane.update_view()

    def model_loaded(self, info: ModelInfo) -> None:
        """Another model is loaded."""
        self._info = info if self._live is None else self._live.model or info  # with what is known of its disk
        if self.feed is not None:
            self.feed.set_model(self._info)

    async def _probe_disk(self) -> None:
        """Measures a disk that nothing is known of, once the engine is idle: a second, then remembered for weeks."""
        if self._live is None:
            return
        try:
            found = await asyncio.to_thread(self._live.probe_disk)
            if found is not None and self._live.probed(found) and self.feed is not None:
                self._info = self.feed.model = found
        except OSError:
            pass  # the pane then draws on the most that was seen

    def engine_gone(self) -> None:
        """The engine's process is gone."""
        self._info = None
        if self.feed is not None:
            self.feed.set_model(None)

    def _expert_map(self, expert_map: ExpertMap) -> None:
        """The newest expert map; it is drawn with the next sample."""
        if self.feed is not None:
            self.feed.push_map(expert_map)

    def cycle_span(self) -> str | None:
        """The curves cover the next stretch of time; returns its name."""
        if self.feed is None:
            return None
        name = self.feed.cycle_span()
        self.update_views()
        return name

    async def layout_changed(self) -> None:
        """Asks the engine for expert maps only while one can be seen; what is recorded or watched from elsewhere the
        engine's owner adds by itself."""
        wanted = self.experts_open or (self._column is not None and bool(self._column.display))
        await self._owner.controller.watch(0.5, MAP_INTERVAL_S if wanted else 0.0)

    async def stop(self) -> None:
        """Stops the thread, ends a recording, closes the socket."""
        if self._live is not None:
            await self._owner.controller.engine.stop_monitor()
