"""Feeds the monitor: a thread that samples the machine, the engine's counters, and the panes that show them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from textual.css.query import NoMatches
from textual.message import Message
from textual.widget import Widget

from backends.interface import ExpertMap, ModelInfo, Telemetry

if TYPE_CHECKING:
    from flashmoe.monitor.collector import Collector, Sampler
    from flashmoe.monitor.feed import MonitorFeed
    from flashmoe.monitor.sample import Sample
    from tui.app import FlashmoeApp

MAP_INTERVAL_S = 2.0


class SampleTaken(Message):
    """One look at the machine and the engine."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample


class Monitoring:
    """Started a moment after the first paint; what is learned before is kept for it."""

    def __init__(self, app: FlashmoeApp) -> None:
        self._app = app
        self._collector: Collector | None = None
        self._sampler: Sampler | None = None
        self._info: ModelInfo | None = None
        self._pid: int | None = None
        self._panes: list[Any] = []
        self.feed: MonitorFeed | None = None

    async def start(self, column: Widget, strip: Widget, *, measure: bool = True) -> None:
        """Mounts the panes into their places and, unless told not to, starts to sample."""
        from flashmoe.monitor.collector import Collector, Sampler
        from flashmoe.monitor.feed import MonitorFeed
        from tui.widgets.monitor_column import MonitorColumn
        from tui.widgets.monitor_strip import MonitorStrip

        self.feed = MonitorFeed()
        self.feed.set_model(self._info)
        self._panes = [MonitorColumn(self.feed), MonitorStrip(self.feed)]
        await column.mount(self._panes[0])
        await strip.mount(self._panes[1])
        await self.layout_changed()
        if not measure:
            return
        self._collector = Collector()
        self._collector.engine_started(self._pid)
        if self._info is not None:
            self._collector.model_loaded(self._info)
        self._sampler = Sampler(self._collector, self._from_thread, 1.0 if self._app.calm else 0.5)
        self._sampler.start()

    def _from_thread(self, sample: Sample) -> None:
        self._app.chat_screen.post_message(SampleTaken(sample))

    def push(self, sample: Sample) -> None:
        """A new sample: every pane looks again."""
        if self.feed is not None:
            self.feed.push(sample)
            self.update_views()

    def update_views(self) -> None:
        """Every pane that can be seen looks at the feed again."""
        for pane in self._panes:
            if pane.is_attached and pane.display:
                pane.update_view()

    def model_loaded(self, info: ModelInfo, pid: int | None) -> None:
        """Another model is loaded."""
        self._info, self._pid = info, pid
        if self.feed is not None:
            self.feed.set_model(info)
        if self._collector is not None:
            self._collector.engine_started(pid)
            self._collector.model_loaded(info)

    def engine_gone(self) -> None:
        """The engine's process is gone."""
        self._info = self._pid = None
        if self.feed is not None:
            self.feed.set_model(None)
        if self._collector is not None:
            self._collector.engine_started(None)

    def telemetry(self, telemetry: Telemetry) -> None:
        """The engine's newest counters."""
        if self._collector is not None:
            self._collector.telemetry(telemetry)

    def expert_map(self, expert_map: ExpertMap) -> None:
        """The newest expert map; it is drawn with the next sample."""
        if self.feed is not None:
            self.feed.push_map(expert_map)

    async def layout_changed(self) -> None:
        """Asks the engine for expert maps only while one can be seen."""
        seen = False
        with contextlib.suppress(NoMatches):
            seen = self._app.chat_screen.query_one("#monitor").display
        await self._app.controller.watch(0.5, MAP_INTERVAL_S if seen else 0.0)

    def stop(self) -> None:
        """Stops the thread."""
        if self._sampler is not None:
            self._sampler.stop()
        if self._collector is not None:
            self._collector.close()
