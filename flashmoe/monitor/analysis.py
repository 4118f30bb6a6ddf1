"""A recording as numbers: a summary, and a table of its curves."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TextIO

from msgspec import Struct

from backends.interface import ModelInfo, Telemetry
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.frame import Frame
from flashmoe.monitor.kept import Part
from flashmoe.monitor.recording import Recording
from flashmoe.monitor.sample import Sample


class Stats(Struct, kw_only=True):
    """What a recorded session came to. Bytes, seconds, shares; None where nothing told."""

    file: str
    recorded_by: str
    started: float
    duration_s: float
    samples: int
    cut: bool
    models: list[str]
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    stall_s: float | None = None
    hook_s: float | None = None
    hit_rate: float | None = None
    expert_read_bytes: int | None = None
    bytes_per_token: float | None = None
    evictions: int | None = None
    process_read_bytes: int | None = None
    major_faults: int | None = None
    peak_engine_bytes: int | None = None
    peak_ram_used: int | None = None
    peak_vram_used: int | None = None
    peak_read_bytes_s: float | None = None
    verdicts: dict[str, float] = {}
    """Seconds that each verdict stood, of the time that the engine worked."""


def frames(recording: Recording) -> Iterator[tuple[Frame, MonitorFeed]]:
    """Every sample as a frame, with the feed as it was then."""
    feed = MonitorFeed()
    for message in recording.messages:
        if isinstance(message, Sample):
            yield feed.push(message), feed
        elif message is None or isinstance(message, ModelInfo):
            feed.set_model(message)


def stats(recording: Recording) -> Stats:
    """The summary; counters of several models or engines in one recording are added up."""
    result = Stats(
        file=recording.path.name,
        recorded_by=recording.header.app,
        started=recording.header.started,
        duration_s=recording.duration,
        samples=len(recording.samples),
        cut=recording.cut,
        models=list(dict.fromkeys(m.name for m in Part[ModelInfo | None](recording.messages, "m") if m is not None)),
    )
    totals: dict[str, Any] = {}
    for a, b in pairwise(recording.samples):
        _sum(totals, a.telemetry, b.telemetry)
        if a.process and b.process and a.process.pid == b.process.pid:
            _add(totals, "process_read_bytes", a.process.read_bytes, b.process.read_bytes)
            _add(totals, "major_faults", a.process.major_faults, b.process.major_faults)
    for name in ("prefill_tokens", "decode_tokens", "prefill_s", "decode_s"):
        setattr(result, name, totals.get(name, 0))
    for name in ("stall_s", "hook_s", "evictions", "process_read_bytes", "major_faults"):
        setattr(result, name, totals.get(name))
    result.expert_read_bytes = totals.get("read_bytes")
    result.prefill_tok_s = result.prefill_tokens / result.prefill_s if result.prefill_s else None
    result.decode_tok_s = result.decode_tokens / result.decode_s if result.decode_s else None
    uses = totals.get("expert_hits", 0) + totals.get("expert_misses", 0)
    result.hit_rate = totals["expert_hits"] / uses if uses else None
    tokens = result.prefill_tokens + result.decode_tokens
    if result.expert_read_bytes is not None and tokens:
        result.bytes_per_token = result.expert_read_bytes / tokens
    previous: float | None = None
    for frame, feed in frames(recording):
        result.peak_engine_bytes = _peak(result.peak_engine_bytes, frame.engine_own)
        result.peak_ram_used = _peak(result.peak_ram_used, frame.ram_used)
        result.peak_read_bytes_s = _peak(result.peak_read_bytes_s, frame.read_s)
        if frame.gpus:
            result.peak_vram_used = _peak(result.peak_vram_used, sum(gpu.used for gpu in frame.gpus))
        if previous is not None and frame.phase in ("prefill", "decode"):
            name = feed.verdict.headline
            result.verdicts[name] = result.verdicts.get(name, 0.0) + frame.t - previous
        previous = frame.t
    return result


_COUNTERS = (
    "prefill_tokens",
    "decode_tokens",
    "prefill_s",
    "decode_s",
    "stall_s",
    "hook_s",
    "expert_hits",
    "expert_misses",
    "read_bytes",
    "evictions",
)


def _sum(totals: dict[str, Any], a: Telemetry | None, b: Telemetry | None) -> None:
    if a is None or b is None or b.decode_tokens < a.decode_tokens or b.prefill_tokens < a.prefill_tokens:
        return
    for name in _COUNTERS:
        _add(totals, name, getattr(a, name), getattr(b, name))


def _add(totals: dict[str, Any], name: str, a: float | None, b: float | None) -> None:
    if a is not None and b is not None and b >= a:
        totals[name] = totals.get(name, 0) + b - a


def _peak(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else max(a, b)


COLUMNS = (
    "t_s",
    "wall",
    "phase",
    "tok_s",
    "read_bytes_s",
    "others_bytes_s",
    "hit_rate",
    "bytes_per_token",
    "read_share",
    "hook_share",
    "ram_used",
    "ram_total",
    "page_cache",
    "engine_own",
    "resident",
    "budget",
    "vram_used",
    "memory_stall",
    "io_stall",
    "cpu_cores",
    "major_faults_s",
    "verdict",
)


def write_csv(recording: Recording, target: TextIO) -> int:
    """One row a sample, empty where unknown; returns the rows."""
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    start, rows = recording.samples[0].t, 0
    for frame, feed in frames(recording):
        work = frame.prefill if frame.phase == "prefill" else frame.decode
        timed = work is not None and work.total_s > 0
        writer.writerow(
            [
                f"{frame.t - start:.3f}",
                f"{frame.wall:.3f}",
                frame.phase,
                _cell(frame.tok_s, 4),
                _cell(frame.read_s, 0),
                _cell(frame.others_s, 0),
                _cell(work.hit_rate if work else None, 5),
                _cell(work.bytes_per_token if work else None, 0),
                _cell(work.stall_s / work.total_s if work and timed and work.stall_s is not None else None, 5),
                _cell(work.hook_s / work.total_s if work and timed and work.hook_s is not None else None, 5),
                *(
                    "" if value is None else value
                    for value in (
                        frame.ram_used,
                        frame.ram_total,
                        frame.ram_cache,
                        frame.engine_own,
                        frame.resident,
                        frame.budget,
                        sum(gpu.used for gpu in frame.gpus) if frame.gpus else None,
                    )
                ),
                _cell(frame.memory_stall, 5),
                _cell(frame.io_stall, 5),
                _cell(frame.cpu_cores, 3),
                _cell(frame.faults_s, 2),
                feed.verdict.line,
            ]
        )
        rows += 1
    return rows


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
