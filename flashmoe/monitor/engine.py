"""The one owner of an engine, for the app, the server, the batch and every command: it holds what is loaded in use,
knows what to load again after a death, and lets the engine be watched (`flashmoe-tui top`) and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from backends.engine.client import Died, EngineClient
from backends.engine.protocol import ChildEvent
from backends.interface import EngineError, ExpertMap, LoadProgress, LoadRequest, ModelInfo, Telemetry
from flashmoe.hub.inuse import InUse
from flashmoe.monitor.live import LiveMonitor
from flashmoe.monitor.sample import Sample
from flashmoe.plans.loading import with_measurements

_INTERVAL_S = 0.5
_MAP_INTERVAL_S = 2.0


class MonitoredEngine(EngineClient):
    """`EngineClient` with a `LiveMonitor`. All methods belong to one event loop.

    From the start of a load until the model is gone (unloaded, replaced, or its engine dead) `rm` and the model screen
    refuse to delete its file. Telemetry is always on; maps only while somebody wants them.
    """

    def __init__(
        self,
        *,
        log_path: Path,
        on_event: Callable[[ChildEvent | Died], None] | None = None,
        on_sample: Callable[[Sample], None] | None = None,
        env: Mapping[str, str] | None = None,
        record: Path | None = None,
        sample_s: float = _INTERVAL_S,
        monitored: bool = True,
    ) -> None:
        """`on_sample` gets every look at the machine, `sample_s` seconds apart; `record`: a new file to record them to.

        `monitored`: the monitor starts with the engine; else `start_monitor` does it, which may come before or after.
        The rest as `EngineClient`.
        """
        super().__init__(log_path=log_path, on_event=self._seen, env=env)
        self._told = on_event
        self._deliver = on_sample
        self._record = record
        self._monitored = monitored
        self.monitor = LiveMonitor(self._sampled, interval_s=sample_s)
        self._monitoring = False
        self._asked = (0.0, 0.0)
        self._maps_on = False
        self._task: asyncio.Task[None] | None = None
        self._in_use: InUse | None = None
        self.request: LoadRequest | None = None
        """What was loaded last: `restart` loads it again."""
        self.loads = 0
        """How many loads there were: a new one knows nothing of earlier chats."""

    # ---- what comes -----------------------------------------------------------------------------------------------

    def _seen(self, event: ChildEvent | Died) -> None:
        if isinstance(event, Telemetry):
            self.monitor.telemetry(event)
        elif isinstance(event, ExpertMap):
            self.monitor.expert_map(event)
        elif isinstance(event, Died):
            self._let_go()
            self.monitor.engine_started(None)
        if self._told is not None:
            self._told(event)

    def _sampled(self, sample: Sample) -> None:
        if self.monitor.maps_wanted != self._maps_on and self.alive:
            self._maps_on = self.monitor.maps_wanted
            self._task = asyncio.ensure_future(self._rewatch())
        if self._deliver is not None:
            self._deliver(sample)

    async def _rewatch(self) -> None:
        interval, maps = self._asked
        maps = min(maps or _MAP_INTERVAL_S, _MAP_INTERVAL_S) if self._maps_on else maps
        await super().watch(min(interval or _INTERVAL_S, _INTERVAL_S), maps)

    async def watch(self, interval_s: float, map_interval_s: float = 0.0) -> None:
        """As `EngineClient.watch`; the monitor's own wishes are added."""
        self._asked = (interval_s, map_interval_s)
        await self._rewatch()

    # ---- starting and loading -------------------------------------------------------------------------------------

    async def start_monitor(self) -> None:
        """Starts to sample and lets others watch. Raises `RecordingError` where it can't be recorded as asked."""
        if self._monitoring:
            return
        if self._record is not None:
            self.monitor.record(self._record)
        self._monitoring = True
        self.monitor.engine_started(self.pid)
        self.monitor.model_loaded(self.model)
        await self.monitor.start()

    async def start(self) -> None:
        """Starts the child, and the monitor. Raises `EngineError`, and `RecordingError` where it can't be recorded."""
        if self._monitored:
            await self.start_monitor()
        await super().start()
        if self._monitoring:
            self.monitor.engine_started(self.pid)

    async def load(self, request: LoadRequest, on_progress: Callable[[LoadProgress], None] | None = None) -> ModelInfo:
        """Loads a model; holds its file and lets the monitor know. Raises `EngineError`."""
        in_use = InUse(request.path)
        if self._monitoring:
            self.monitor.model_loaded(None)
        try:
            info = await super().load(await asyncio.to_thread(with_measurements, request), on_progress)
        except BaseException:
            in_use.release()
            if self.model is None:
                self._let_go()
            raise
        self._let_go()
        self._in_use, self.request = in_use, request
        self.loads += 1
        if self._monitoring:
            self.monitor.engine_started(self.pid)
            self.monitor.model_loaded(info)
        await self._rewatch()
        return info

    async def restart(self, on_progress: Callable[[LoadProgress], None] | None = None) -> ModelInfo:
        """Loads again what was loaded last, in a new child where the last one died. Raises `EngineError`."""
        if self.request is None:
            raise EngineError("bad_request", "No model was loaded yet", "choose one first.")
        return await self.load(self.request, on_progress)

    async def unload(self) -> None:
        """Frees the model."""
        await super().unload()
        self._let_go()
        if self._monitoring:
            self.monitor.model_loaded(None)

    async def stop_monitor(self) -> None:
        """Ends the sampling, a recording and the socket."""
        if self._monitoring:
            self._monitoring = False
            await self.monitor.stop()

    async def stop(self) -> None:
        """Ends the child, then the monitor."""
        await super().stop()
        self._let_go()
        await self.stop_monitor()

    def _let_go(self) -> None:
        if self._in_use is not None:
            self._in_use.release()
            self._in_use = None
