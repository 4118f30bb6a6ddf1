"""An engine's client whose engine can be watched (`flashmoe-tui top`) and recorded; commands use it in place of the
bare client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from backends.engine.client import Died, EngineClient
from backends.engine.protocol import ChildEvent
from backends.interface import ExpertMap, LoadProgress, LoadRequest, ModelInfo, Telemetry
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.sample import Sample

_INTERVAL_S = 0.5
_MAP_INTERVAL_S = 2.0


class MonitoredEngine(EngineClient):
    """`EngineClient` with a `LiveMonitor`. Telemetry is always on; maps only while somebody wants them."""

    def __init__(
        self,
        *,
        log_path: Path,
        on_event: Callable[[ChildEvent | Died], None] | None = None,
        env: Mapping[str, str] | None = None,
        record: Path | None = None,
    ) -> None:
        """`record`: a new file to record the monitor to. The rest as `EngineClient`."""
        super().__init__(log_path=log_path, on_event=self._seen, env=env)
        self._told = on_event
        self._record = record
        self.monitor = LiveMonitor(self._sampled, interval_s=_INTERVAL_S)
        self._monitoring = False
        self._asked = (0.0, 0.0)
        self._maps_on = False
        self._task: asyncio.Task[None] | None = None

    def _seen(self, event: ChildEvent | Died) -> None:
        if isinstance(event, Telemetry):
            self.monitor.telemetry(event)
        elif isinstance(event, ExpertMap):
            self.monitor.expert_map(event)
        elif isinstance(event, Died):
            self.monitor.engine_started(None)
        if self._told is not None:
            self._told(event)

    def _sampled(self, sample: Sample) -> None:
        if self.monitor.maps_wanted != self._maps_on and self.alive:
            self._maps_on = self.monitor.maps_wanted
            self._task = asyncio.ensure_future(self._rewatch())

    async def _rewatch(self) -> None:
        interval, maps = self._asked
        maps = min(maps or _MAP_INTERVAL_S, _MAP_INTERVAL_S) if self._maps_on else maps
        await super().watch(min(interval or _INTERVAL_S, _INTERVAL_S), maps)

    async def watch(self, interval_s: float, map_interval_s: float = 0.0) -> None:
        """As `EngineClient.watch`; the monitor's own wishes are added."""
        self._asked = (interval_s, map_interval_s)
        await self._rewatch()

    async def start(self) -> None:
        """Starts the child and the monitor. Raises `EngineError`, and `RecordingError` where it can't be recorded."""
        if not self._monitoring:
            self._monitoring = True
            if self._record is not None:
                self.monitor.record(self._record)
            await self.monitor.start()
        await super().start()
        self.monitor.engine_started(self.pid)

    async def load(self, request: LoadRequest, on_progress: Callable[[LoadProgress], None] | None = None) -> ModelInfo:
        """Loads a model and lets the monitor know."""
        self.monitor.model_loaded(None)
        info = await super().load(request, on_progress)
        self.monitor.engine_started(self.pid)
        self.monitor.model_loaded(info)
        await self._rewatch()
        return info

    async def unload(self) -> None:
        """Frees the model."""
        await super().unload()
        self.monitor.model_loaded(None)

    async def stop(self) -> None:
        """Ends the child, then the monitor."""
        await super().stop()
        if self._monitoring:
            self._monitoring = False
            await self.monitor.stop()
