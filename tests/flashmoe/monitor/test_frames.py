"""Rates and shares from counters, histories, and numbers that stand still."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from backends.interface import Telemetry
from flashmoe import figures
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.frame import Deriver, Frame
from flashmoe.monitor.history import History
from flashmoe.monitor.sample import DiskCounters, MemoryCounters, ProcessCounters, Sample
from tests.monitor_demo import GUIDE, DemoEngine


def sample(t: float, **telemetry: Any) -> Sample:
    return Sample(
        t=t,
        wall=t,
        process=ProcessCounters(pid=1, read_bytes=int(t * 1e6), cpu_s=t * 2, major_faults=int(t * 10)),
        disk=DiskCounters(name="d", read_bytes=int(t * 3e6), reads=int(t * 100), read_s=t * 0.2, busy_s=t * 0.5),
        telemetry=Telemetry(t=t, **telemetry),
    )


def frames(*samples: Sample) -> Frame:
    deriver = Deriver()
    result = [deriver.push(each) for each in samples]
    return result[-1]


def test_rates_are_differences_over_the_window() -> None:
    frame = frames(*(sample(float(t)) for t in range(8)))
    assert frame.read_s == pytest.approx(1e6)
    assert frame.others_s == pytest.approx(2e6)
    assert frame.latency_s == pytest.approx(0.002)
    assert frame.cpu_cores == pytest.approx(2.0)
    assert frame.faults_s == pytest.approx(10.0)
    assert frame.disk_busy == pytest.approx(0.5)


def test_anatomy_of_decode_and_prefill_are_kept_apart() -> None:
    frame = frames(
        sample(0, prefill_tokens=0, decode_tokens=0, stall_s=0.0, hook_s=0.0, n_active=1),
        sample(1, prefill_tokens=100, prefill_s=1.0, stall_s=0.9, hook_s=0.0, n_active=1),
        sample(
            2, prefill_tokens=100, prefill_s=1.0, decode_tokens=4, decode_s=1.0, stall_s=1.4, hook_s=0.1, n_active=1
        ),
    )
    assert frame.phase == "decode"
    assert frame.prefill is not None
    assert frame.prefill.tok_s == 100
    assert frame.decode is not None
    assert frame.decode.tok_s == 4
    assert frame.decode.stall_s == pytest.approx(0.5)
    assert frame.decode.compute_s == pytest.approx(0.4)


def test_a_slow_token_does_not_turn_the_engine_idle() -> None:
    first = sample(0, decode_tokens=0, n_active=1)
    frame = frames(first, *(sample(t, decode_tokens=1, decode_s=0.4, n_active=1) for t in (0.5, 1.0, 3.5, 6.0)))
    assert frame.phase == "decode"
    assert frame.tok_s == pytest.approx(2.5)


def test_what_a_long_batch_waited_for_is_booked_when_it_is_done() -> None:
    """Seconds are counted when a batch ends, waits while it runs: a token of 2 s spans four samples and loses none."""
    quiet = {"decode_tokens": 1, "decode_s": 2.0, "n_active": 1}
    frame = frames(
        Sample(t=-0.5, wall=0.0),  # before the engine told anything
        sample(0.0, stall_s=5.0, read_bytes=0),  # before: an answer that ended
        sample(0.5, stall_s=5.0, read_bytes=0, n_active=1),
        sample(1.0, stall_s=5.45, read_bytes=45, n_active=1),
        sample(1.5, stall_s=5.9, read_bytes=90, n_active=1),
        sample(2.0, stall_s=6.35, read_bytes=135, n_active=1),
        sample(2.5, stall_s=6.8, read_bytes=180, **quiet),
        sample(3.0, stall_s=6.8, read_bytes=180, **quiet),
    )
    assert frame.decode is not None
    assert frame.decode.stall_s == pytest.approx(1.8)
    assert frame.decode.read_bytes == 180
    assert frame.decode.total_s == pytest.approx(2.0)


def test_a_request_that_begins_reads_its_prompt() -> None:
    done = {"prefill_tokens": 9, "prefill_s": 1.0, "decode_tokens": 5, "decode_s": 1.0}
    before = (sample(0, n_active=1), sample(1, **done, n_active=1), sample(2, **done, n_active=0))
    assert frames(*before).phase == "idle"
    assert frames(*before, sample(3, **done, n_active=1)).phase == "prefill"
    assert frames(*before, sample(3, **done, n_active=1), sample(9, **done, n_active=1)).phase == "prefill"
    # Whoever looks in the middle of an answer sees an answer.
    assert frames(sample(1, **done, n_active=1), sample(2, **done, n_active=1)).phase == "decode"


def test_another_model_starts_anew() -> None:
    frame = frames(
        sample(0, decode_tokens=0, n_active=1),
        sample(1, decode_tokens=50, decode_s=1.0, n_active=1),
        sample(2, decode_tokens=2, decode_s=0.1, n_active=1),
    )
    assert frame.decode is None


def test_unknown_stays_unknown() -> None:
    frame = frames(Sample(t=0, wall=0), Sample(t=1, wall=1))
    assert frame.phase == "none"
    assert frame.read_s is None
    assert frame.ram_total is None
    assert frame.others_s is None


def test_memory_inside_a_cgroup_counts_against_its_limit() -> None:
    memory = MemoryCounters(total=100, available=80, free=60, cached=20, limit=50, limit_used=40, limit_cached=30)
    frame = frames(Sample(t=0, wall=0, memory=memory))
    assert (frame.ram_total, frame.ram_used, frame.ram_cache, frame.ram_available) == (50, 10, 30, 40)
    assert frame.ram_limited


def test_history_shows_means_and_gaps() -> None:
    history = History()
    for t in range(60):
        history.push(float(t), 1.0 if t < 30 else None)
    view = history.view(60.0, 6)
    assert len(view) == 6
    assert view[0] == pytest.approx(1.0)
    assert view[-1] is None


def test_history_does_not_wobble_as_it_moves() -> None:
    history = History()
    seen = []
    for t in range(400):
        history.push(t * 0.5, float(t % 7))
        seen.append(history.view(30.0, 10))
    # From one sample to the next a column keeps its value or the picture moves by one column.
    for before, after in itertools.pairwise(seen[100:]):
        assert after[1:-1] == before[1:-1] or after[:-2] == before[1:-1]


def test_columns_narrower_than_the_samples_are_apart_have_no_holes() -> None:
    history = History()
    for t in range(60):
        history.push(float(t), 3.0 if t < 40 else None)
    view = history.view(60.0, 120)
    assert view[2:78] == [3.0] * 76
    assert view[-30:] == [None] * 30  # a real gap stays one


@pytest.mark.parametrize("span", [30.0, 120.0, 600.0, 3600.0, None])
def test_history_covers_hours_at_bounded_cost(span: float | None) -> None:
    history = History()
    for t in range(4 * 3600):
        history.push(t * 1.0, 5.0)
    view = history.view(span, 20)
    known = [value for value in view if value is not None]
    assert len(known) >= (8 if span is None else 19)
    assert all(value == pytest.approx(5.0) for value in known)


def test_units_follow_the_scale() -> None:
    assert figures.size(9.4 * 2**30, 24 * 2**30) == "9.4 GiB"
    assert figures.size(0.01 * 2**30, 24 * 2**30) == "0.0 GiB"
    assert figures.rate(1.2e9, 1.4e9) == "1.20 GB/s"
    assert figures.rate(3e6, 1.4e9) == "0.00 GB/s"
    assert figures.speed(0.314) == "0.31"
    assert figures.speed(4.84) == "4.8"
    assert figures.speed(212.4) == "212"
    assert figures.size(None) == figures.rate(None) == figures.speed(None) == "-"
    assert len(figures.percent(0.04)) == len(figures.percent(1.0)) == len(figures.percent(None))


def test_a_disk_that_gives_more_than_its_probe() -> None:
    engine = DemoEngine("capped", **GUIDE)
    feed = MonitorFeed()
    feed.set_model(msgspec.structs.replace(engine.info, disk_bytes_s=1e6))
    for t in range(8):
        feed.push(sample(float(t)))  # 3 MB/s on the device
    assert feed.ceiling == pytest.approx(3e6)
    assert feed.disk_scale() == (1e8, False)
    feed.set_model(msgspec.structs.replace(engine.info, disk_bytes_s=2.9e6))
    assert feed.ceiling == 2.9e6
    assert feed.disk_scale() == (2.9e6, True)
