"""The monitor of a running engine: samples on a thread, hands them on, records them, lets others watch.

Whatever program owns an engine's client owns one of these. All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from backends.engine.watch_socket import WatchServer
from backends.interface import ExpertMap, ModelInfo, Telemetry
from flashmoe.monitor.collector import Collector, Sampler
from flashmoe.monitor.map_codec import MapEncoder
from flashmoe.monitor.recording import Message, Recorder, RecordingError, encode_message
from flashmoe.monitor.sample import Sample
from flashmoe.paths import PathError, ensure_dir, runtime_dir

_encoder = msgspec.msgpack.Encoder()


def pack(message: Message) -> bytes:
    """A message as it goes over the watch socket: the MessagePack array [kind, payload] of a recording."""
    return _encoder.encode(encode_message(message))


def with_ceiling(info: ModelInfo | None) -> ModelInfo | None:
    """`info` with what is remembered of its disk's speed, where the backend didn't probe it."""
    if info is None or info.disk_bytes_s or not Path(info.path).is_file():
        return info
    from flashmoe.plans.measurements import machine

    return msgspec.structs.replace(info, disk_bytes_s=machine(Path(info.path).parent, measure=False).disk_bytes_s)


class LiveMonitor:
    """Joins the engine's events with the machine's counters into one stream of samples."""

    def __init__(self, deliver: Callable[[Sample], None], *, interval_s: float = 0.5, watchable: bool = True) -> None:
        """`deliver` is called on the event loop for each sample; `watchable` opens the socket for `top`."""
        self._deliver = deliver
        self._collector = Collector()
        self._sampler = Sampler(self._collector, self._from_thread, interval_s)
        self._watchable = watchable
        self._server: WatchServer | None = None
        self._recorder: Recorder | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._model: ModelInfo | None = None
        self._map: ExpertMap | None = None
        self._sample: Sample | None = None
        self._pid: int | None = None
        self._stopped = False

    async def start(self) -> None:
        """Starts the thread, and the socket where the runtime folder allows it."""
        self._loop = asyncio.get_running_loop()
        if self._watchable:
            server = None
            with contextlib.suppress(PathError, OSError):
                server = WatchServer(ensure_dir(runtime_dir(), private=True), self._greeting)
                await server.start()
                self._server = server
        self._sampler.start()

    def _greeting(self) -> list[bytes]:
        messages: list[Message] = [self._model]
        if self._sample is not None:
            messages.append(self._sample)
        if self._map is not None:
            messages.append(MapEncoder().encode(self._map))
        return [pack(message) for message in messages]

    @property
    def maps_wanted(self) -> bool:
        """Whether somebody watches or a recording runs: maps are wanted then, whatever this screen shows."""
        return self._recorder is not None or (self._server is not None and self._server.watchers > 0)

    def _from_thread(self, sample: Sample) -> None:
        if self._recorder is not None:
            self._recorder.sample(sample)
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._arrived, sample)

    def _arrived(self, sample: Sample) -> None:
        if self._stopped:
            return
        self._sample = sample
        if self._server is not None and self._server.watchers:
            self._server.publish(pack(sample))
        self._deliver(sample)

    def engine_started(self, pid: int | None) -> None:
        """The engine's process; None when it is gone."""
        if pid != self._pid:
            self._pid = pid
            self._collector.engine_started(pid)
        if pid is None and self._model is not None:
            self.model_loaded(None)

    def model_loaded(self, info: ModelInfo | None) -> ModelInfo | None:
        """The loaded model, None when it was unloaded. Returns it with what is remembered of its disk's speed."""
        info = with_ceiling(info)
        self._model, self._map = info, None
        self._collector.model_loaded(info)
        self._announce(info)
        return info

    def _announce(self, info: ModelInfo | None) -> None:
        if self._recorder is not None:
            self._recorder.model(info)
        if self._server is not None:
            self._server.publish(pack(info))

    def probe_disk(self) -> ModelInfo | None:
        """Measures the disk of a model whose ceiling isn't known (a second of reads); blocks, for a thread.

        Returns the model's info with it, None where there is nothing to do. `probed` takes it in on the event loop.
        """
        info = self._model
        if info is None or info.disk_bytes_s or not Path(info.path).is_file():
            return None
        from flashmoe.plans.measurements import machine

        speed = machine(Path(info.path).parent, files=[info.path]).disk_bytes_s
        return msgspec.structs.replace(info, disk_bytes_s=speed) if speed else None

    def probed(self, info: ModelInfo) -> bool:
        """Takes the result of `probe_disk` in, unless another model was loaded meanwhile."""
        if self._model is None or self._model.path != info.path:
            return False
        self._model = info
        self._announce(info)
        return True

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model with what is known of its disk."""
        return self._model

    def telemetry(self, telemetry: Telemetry) -> None:
        """The engine's newest counters: part of the next sample."""
        self._collector.telemetry(telemetry)

    def expert_map(self, experts: ExpertMap) -> None:
        """The newest expert map."""
        self._map = experts
        if self._recorder is not None:
            self._recorder.expert_map(experts)
        if self._server is not None and self._server.watchers:
            self._server.publish(pack(MapEncoder().encode(experts)))

    def record(self, path: Path) -> None:
        """Records from now on; raises `RecordingError`. A recording that runs already is ended first."""
        recorder = Recorder(path)
        self.stop_recording()
        recorder.model(self._model)
        if self._map is not None:
            recorder.expert_map(self._map)
        self._recorder = recorder

    def stop_recording(self) -> str | None:
        """Ends the recording; returns a sentence where it went wrong."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return None
        recorder.close()
        return recorder.problem

    @property
    def recording(self) -> Path | None:
        """The file that is being recorded to."""
        return self._recorder.path if self._recorder is not None else None

    async def stop(self) -> None:
        """Ends the thread, the recording and the socket."""
        self._stopped = True
        await asyncio.to_thread(self._sampler.stop)
        self.stop_recording()
        self._collector.close()
        if self._server is not None:
            await self._server.stop()
            self._server = None


__all__ = ["LiveMonitor", "RecordingError", "pack"]
