"""A recording that plays into a feed: pause, speed, seek."""

from __future__ import annotations

from bisect import bisect_right

from backends.interface import ModelInfo
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.map_codec import MapDecoder, MapFrame
from flashmoe.monitor.recording import Recording
from flashmoe.monitor.sample import Sample

SPEEDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 60.0)


class Player:
    """Holds the place in a recording. Times are seconds since its first sample."""

    def __init__(self, recording: Recording, feed: MonitorFeed) -> None:
        self.recording = recording
        self.feed = feed
        self.speed = 1.0
        self.paused = False
        self.position = 0.0
        start = recording.samples[0].t
        self._times: list[float] = []
        self._keyframes: set[int] = set()
        now = 0.0
        for place, message in enumerate(recording.messages):
            if isinstance(message, MapFrame) and message.keyframe:
                self._keyframes.add(place)
            if isinstance(message, Sample):
                # A clock that falls (a second boot in one file can't be) must not break the order.
                now = max(now, message.t - start)
            self._times.append(now)
        self.duration = now
        self._cursor = 0
        self._decoder = MapDecoder()
        self._apply(0.0)

    @property
    def ended(self) -> bool:
        """Whether the last message was played."""
        return self._cursor >= len(self._times)

    def advance(self, seconds: float) -> None:
        """Plays on by `seconds` of the watcher's time; pauses at the end."""
        if not self.paused:
            self.seek(self.position + seconds * self.speed)
            if self.ended:
                self.paused = True

    def faster(self, step: int) -> float:
        """The next speed up or down; returns it."""
        index = min(range(len(SPEEDS)), key=lambda i: abs(SPEEDS[i] - self.speed))
        self.speed = SPEEDS[min(max(0, index + step), len(SPEEDS) - 1)]
        return self.speed

    def seek(self, position: float) -> None:
        """Goes to a time. Backwards means from the start again: histories hold only what came before."""
        position = min(max(0.0, position), self.duration)
        if position < self.position:
            self.feed.clear()
            self.feed.set_model(None)
            self._cursor, self._decoder = 0, MapDecoder()
        self.position = position
        self._apply(position)

    def _apply(self, position: float) -> None:
        end = bisect_right(self._times, position)
        messages, kinds = self.recording.messages, self.recording.messages.kinds
        todo = range(self._cursor, end)
        last_sample = kinds.rfind("s", self._cursor, end)
        # Only maps from the last keyframe on are worth decoding.
        key = next((i for i in reversed(todo) if kinds[i] == "e" and i in self._keyframes), self._cursor)
        for index in todo:
            if kinds[index] == "e" and index < key:
                continue
            message = messages[index]
            if isinstance(message, Sample):
                self.feed.push(message, judged=index == last_sample or end - self._cursor < 100)
            elif isinstance(message, MapFrame):
                self._map(message)
            elif message is None or isinstance(message, ModelInfo):
                self.feed.set_model(message)
        self._cursor = end

    def _map(self, frame: MapFrame) -> None:
        try:
            self.feed.push_map(self._decoder.decode(frame))
        except ValueError:  # a damaged map leaves the last good one
            return
