"""What every pane reads: the newest frame, the histories, the expert map, the model, the verdict.

One feed serves the main screen, the expert map, `top` and `replay` alike: whoever has samples pushes them, live or
from a recording, and tells its widgets to look again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.interface import ExpertMap, ModelInfo
from flashmoe.monitor.frame import Deriver, Frame
from flashmoe.monitor.history import SPANS, History
from flashmoe.monitor.sample import Sample
from flashmoe.monitor.verdict import Verdict, judge

if TYPE_CHECKING:
    from flashmoe.monitor.expert_stats import ExpertArrays

_VERDICT_EVERY_S = 2.0
_PROBE_WAS_LOW = 1.15
"""A disk that gave this much more than it was probed at was busy then: the probe isn't believed."""

CURVES: dict[str, tuple[str, str]] = {
    "ram": ("RAM in use apart from page cache", "bytes"),
    "cache": ("page cache", "bytes"),
    "engine": ("memory of the engine's own", "bytes"),
    "vram": ("VRAM in use", "bytes"),
    "read": ("the engine's reads", "bytes/s"),
    "others": ("others' reads on the same disk", "bytes/s"),
    "tok_s": ("speed", "tokens/s"),
    "hit": ("hit rate", "share"),
    "stall": ("time waiting for reads", "share"),
    "pressure": ("tasks waiting for memory", "share"),
    "cpu": ("the engine's CPUs", "CPUs"),
}
"""Curve -> (what it is, its unit)."""


class MonitorFeed:
    """State of the panes; touched from one thread only (the user interface's, or the one that replays)."""

    def __init__(self) -> None:
        self.span_index = 1
        self.model: ModelInfo | None = None
        self.note: str | None = None
        """A few words about where the samples come from (``replay``, ``watching 4711``); None in the app itself."""
        self.clear()

    def clear(self) -> None:
        """Forgets everything measured (a replay that jumps back starts again)."""
        self._deriver = Deriver()
        self.frame: Frame | None = None
        self.map: ExpertMap | None = None
        self.verdict = Verdict(kind="none", headline="no model loaded")
        self._verdict_t = -1e9
        self._verdict_phase = ""
        self.histories: dict[str, History] = {name: History() for name in CURVES}
        self._answer_peak = 0.0
        self.started: float | None = None
        self._device_peak = 0.0
        self._arrays_of: ExpertMap | None = None
        self._arrays: ExpertArrays | None = None

    def push(self, sample: Sample, *, judged: bool = True) -> Frame:
        """Takes a sample in; returns the frame made of it. `judged` False leaves the verdict (a replay that jumps)."""
        frame = self._deriver.push(sample)
        self.frame = frame
        if self.started is None:
            self.started = frame.t
        self._device_peak = max(self._device_peak, (frame.read_s or 0.0) + (frame.others_s or 0.0))
        if frame.phase == "decode" and frame.decode is not None:
            self._answer_peak = max(self._answer_peak, frame.decode.tok_s or 0.0)
        for name, value in _curve_values(frame).items():
            self.histories[name].push(frame.t, value)
        due = frame.t - self._verdict_t >= _VERDICT_EVERY_S or frame.t < self._verdict_t
        if judged and (due or frame.phase != self._verdict_phase):
            self.verdict = judge(frame, self.model, self.ceiling)
            self._verdict_t, self._verdict_phase = frame.t, frame.phase
        return frame

    def push_map(self, experts: ExpertMap | None) -> None:
        """Takes a new expert map in."""
        self.map = experts

    @property
    def arrays(self) -> ExpertArrays | None:
        """The map as arrays, made once a map; None where there is none, or one that makes no sense."""
        if self.map is not self._arrays_of:
            from flashmoe.monitor.expert_stats import ExpertArrays

            self._arrays_of = self.map
            try:
                self._arrays = ExpertArrays(self.map) if self.map is not None else None
            except ValueError:
                self._arrays = None
        return self._arrays

    def set_model(self, info: ModelInfo | None) -> None:
        """The model that the next samples are about; None: unloaded."""
        self.model = info
        self.map = None
        self._verdict_t = -1e9

    @property
    def span(self) -> tuple[str, float | None]:
        """(name, seconds) of the stretch that curves cover; seconds None for the whole session."""
        return SPANS[self.span_index]

    def cycle_span(self, step: int = 1) -> str:
        """Goes to the next stretch; returns its name."""
        self.span_index = (self.span_index + step) % len(SPANS)
        return self.span[0]

    def curve(self, name: str, columns: int) -> list[float | None]:
        """The history `name` over the current span in `columns` values."""
        return self.histories[name].view(self.span[1], columns)

    def disk_scale(self) -> tuple[float, bool]:
        """(bytes/s that the SSD's curve is drawn on, whether that was probed rather than the most seen)."""
        probed = self.model.disk_bytes_s if self.model else None
        if probed and self.ceiling == probed:
            return probed, True
        return max(_nice(self._device_peak), 1e8), False

    def speed_scale(self) -> float:
        """Tokens/s that the speed's curve is drawn on: the answers', since a prompt's are hundreds of times as fast and
        would leave them a line at the bottom."""
        return _nice(max(self._answer_peak or self.histories["tok_s"].peak, 0.1), least=0.1)

    @property
    def ceiling(self) -> float | None:
        """What the model's disk can give: as probed, or more where it has given more (a probe under load is low)."""
        probed = self.model.disk_bytes_s if self.model else None
        if not probed:
            return None
        return probed if self._device_peak < _PROBE_WAS_LOW * probed else self._device_peak


def _nice(value: float, least: float = 1.0) -> float:
    """The next of 1, 2, 5 x 10^n, so that a scale rarely moves; `least` is one of them."""
    power = least
    while power * 10 <= value:
        power *= 10
    return next(power * m for m in (1, 2, 5, 10) if power * m >= value)


def _curve_values(frame: Frame) -> dict[str, float | None]:
    active = frame.phase in ("decode", "prefill")
    work = (frame.decode if frame.phase == "decode" else frame.prefill) if active else None
    return {
        "ram": frame.ram_used,
        "cache": frame.ram_cache,
        "engine": frame.engine_own,
        "vram": sum(gpu.used for gpu in frame.gpus) if frame.gpus else None,
        "read": frame.read_s,
        "others": frame.others_s,
        "tok_s": (frame.tok_s if active else 0.0) if frame.phase != "none" else None,
        "hit": work.hit_rate if work else None,
        "stall": work.stall_s / work.total_s if work and work.stall_s is not None and work.total_s > 0 else None,
        "pressure": frame.memory_stall,
        "cpu": frame.cpu_cores,
    }
