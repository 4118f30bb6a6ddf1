"""The watcher's side of the socket: messages of a running engine into a feed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from backends.engine import watch_socket
from backends.interface import ModelInfo
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.map_codec import MapDecoder, MapFrame
from flashmoe.monitor.recording import Message, Recorder, decode_message
from flashmoe.monitor.sample import Sample
from flashmoe.paths import runtime_dir

_decoder = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


def engines() -> list[tuple[int, Path]]:
    """(pid, socket) of every engine of this user that can be watched, newest first."""
    return watch_socket.running(runtime_dir())


class Watcher:
    """Fills a feed from a socket."""

    def __init__(self, feed: MonitorFeed, recorder: Recorder | None = None) -> None:
        self.feed = feed
        self._recorder = recorder
        self.problem: str | None = None
        self._maps = MapDecoder()

    async def follow(self, path: Path) -> AsyncIterator[Message]:
        """Each message after the feed took it in; ends when the engine's program ends."""
        try:
            async for data in watch_socket.watch(path):
                try:
                    known, message = decode_message(*_decoder.decode(data))
                    if known:
                        self._take(message)
                except (msgspec.DecodeError, ValueError):
                    self.problem = "The engine belongs to another version; use the same flashmoe-tui for both."
                    return
                yield message
        except OSError as error:
            self.problem = f"Can't watch {path.name} ({error.strerror})."

    def _take(self, message: Message) -> None:
        if isinstance(message, Sample):
            self.feed.push(message)
            if self._recorder is not None:
                self._recorder.sample(message)
        elif isinstance(message, MapFrame):
            experts = self._maps.decode(message)
            self.feed.push_map(experts)
            if self._recorder is not None and experts is not None:
                self._recorder.expert_map(experts)
        elif message is None or isinstance(message, ModelInfo):
            self.feed.set_model(message)
            if self._recorder is not None:
                self._recorder.model(message)
