"""Recordings that were made to do harm: bounded in memory, whatever they say, and no number ends a drawing."""

from __future__ import annotations

import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.interface import Telemetry
from flashmoe.monitor import recording as recordings
from flashmoe.monitor.analysis import stats, write_csv
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.kept import sound
from flashmoe.monitor.plot import svg
from flashmoe.monitor.recording import MAGIC, Recording, RecordingError
from flashmoe.monitor.replay import Player
from flashmoe.monitor.sample import Sample
from tests.places import RECORDINGS
from tui.screens.experts import ExpertMapView
from tui.widgets.monitor.column import MonitorColumn


def block(messages: Any) -> bytes:
    data = zlib.compress(msgspec.msgpack.encode(messages), 9)
    return struct.pack("<I", len(data)) + data


def write(path: Path, *blocks: Any) -> Path:
    path.write_bytes(MAGIC + b"".join(map(block, blocks)))
    return path


TINY = ["s", {"t": 1.0, "wall": 1.0}]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300, -1e300])
def test_numbers_that_make_no_sense_are_left_out(tmp_path: Path, number: float) -> None:
    good = [["s", {"t": float(t), "wall": float(t)}] for t in range(5)]
    bad = [
        ["s", {"t": number, "wall": 1.0}],
        ["s", {"t": 9.0, "wall": 9.0, "telemetry": {"t": 9.0, "decode_s": number}}],
        ["s", {"t": 9.0, "wall": 9.0, "telemetry": {"t": 9.0, "layer_pace": [[1.0, number]]}}],
    ]
    recording = Recording(write(tmp_path / "r.fmrec", [*good, *bad]))
    assert recording.unsound == 3
    assert len(recording.samples) == 5
    assert recording.duration == 4.0
    assert stats(recording).samples == 5
    assert "<svg" in svg(recording)


def test_a_block_of_millions_of_messages_is_refused_before_they_are_made(tmp_path: Path) -> None:
    path = write(tmp_path / "r.fmrec", [TINY] * 300_000)
    with pytest.raises(RecordingError, match="more messages than it may"):
        Recording(path)


def test_the_sum_is_bounded_and_the_rest_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MAX_KEPT", 100_000)
    path = write(tmp_path / "r.fmrec", *([["s", {"t": float(b), "wall": 1.0}]] * 500 for b in range(20)))
    recording = Recording(path)
    assert recording.more
    assert 500 < len(recording.samples) < 2000
    assert stats(recording).samples == len(recording.samples)


def test_a_recording_takes_no_more_memory_than_it_is_large(tmp_path: Path) -> None:
    """Each packed byte of `layer_pace` stands for some forty of objects: 2 MB became more than 2 GB."""
    sample = ["s", {"t": 1.0, "wall": 1.0, "telemetry": {"t": 1.0, "layer_pace": [[1, 2]] * 1000}}]
    path = write(tmp_path / "r.fmrec", *([sample] * 20 for _ in range(4)))
    recording = Recording(path)
    assert len(recording.samples) == 80
    assert recording.messages.size < 1 << 20  # as objects: 9 MiB


def test_a_list_of_thousands_is_none_of_an_engine(tmp_path: Path) -> None:
    long = ["s", {"t": 1.0, "wall": 1.0, "telemetry": {"t": 1.0, "layer_pace": [[1, 2]] * 20_000}}]
    recording = Recording(write(tmp_path / "r.fmrec", [TINY, long]))
    assert (len(recording.samples), recording.unsound) == (1, 1)


def wild(rng: random.Random, value: Any) -> Any:
    """The same message with some of its numbers replaced by others that a counter may have."""
    if isinstance(value, dict):
        return {key: wild(rng, item) for key, item in value.items()}
    if isinstance(value, list):
        return [wild(rng, item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.02:
        return type(value)(rng.choice((0, -1, 1, 1e17, -1e17, 1e12, 7)))
    return value


@pytest.mark.parametrize("seed", range(6))
def test_any_counters_are_drawn(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    source = Recording(RECORDINGS / "guide.fmrec")
    messages: list[Any] = []
    for message in list(source.messages)[:120]:
        kind = recordings.encode_message(message)[0]
        plain = msgspec.to_builtins(message, builtin_types=(bytes,))
        messages.append([kind, plain if kind == "e" else wild(rng, plain)])
    recording = Recording(write(tmp_path / "r.fmrec", messages))
    feed = MonitorFeed()
    player = Player(recording, feed)
    column, view = MonitorColumn(feed), ExpertMapView(feed)
    for share in (0.0, 0.3, 0.6, 1.0, 0.1):
        player.seek(player.duration * share)
        for width, height in ((30, 20), (56, 40)):
            column.make_lines(width, height)
            view.make_lines(width * 2, height)
    with (tmp_path / "out.csv").open("w") as target:
        write_csv(recording, target)
    stats(recording)
    assert "<svg" in svg(recording)


def test_sound() -> None:
    assert sound(Sample(t=1.0, wall=2.0, telemetry=Telemetry(t=1.0, layer_pace=((1.0, 2.0),))))
    assert not sound(Sample(t=1.0, wall=2.0, telemetry=Telemetry(t=1.0, layer_pace=((1.0, math.nan),))))
