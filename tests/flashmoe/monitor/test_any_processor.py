"""What is drawn must not depend on the processor: made-up samples, maps, curves and recordings come out the same
whichever of numpy's kernels run."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from backends.interface import ExpertMap
from backends.streaming.reuse_distance import ReuseMeter
from flashmoe.monitor.expert_stats import Cells, ExpertArrays
from flashmoe.monitor.map_codec import MapDecoder, MapEncoder
from tests.monitor_demo import DemoEngine
from tests.places import ROOT

# Every kernel beyond the ones that each x86 has; numpy says nothing of those that this processor lacks.
OFF = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"

DIGEST = """
import hashlib, sys
sys.path.insert(0, ".")
import msgspec
import numpy as np
from flashmoe.monitor.expert_stats import Cells
from flashmoe.monitor.map_codec import MapDecoder, MapEncoder
from flashmoe.monitor.prediction import hit_curve
from tests.monitor_demo import GUIDE, demo, feed_of
for case in demo.CASES:
    for shape in ({}, GUIDE):
        engine, feed = feed_of(case, 20.0, **shape)
        told = hashlib.sha256(msgspec.json.encode(engine.step()))
        told.update(msgspec.msgpack.encode(engine.map()))
        arrays = feed.arrays
        for rows, columns in ((48, 128), (16, 64), (7, 30)):
            cells = Cells(arrays, rows, columns, by_use=True)
            told.update(cells.level.tobytes() + cells.resident.tobytes())
        told.update(repr(arrays.hottest_miss()).encode())
        again = MapDecoder().decode(MapEncoder().encode(engine.map()))
        told.update(msgspec.msgpack.encode(again))
        hist = engine.meter.histogram()
        if any(hist):
            total = float(engine.total)
            told.update(hit_curve(0.8, hist, total / 3, total * np.arange(1, 61) / 60).tobytes())
        print(case, len(shape), told.hexdigest())
"""


def digests(disabled: str) -> list[str]:
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled, "PYTHONWARNINGS": "ignore"}
    if disabled:
        env["OPENBLAS_CORETYPE"] = "Nehalem"  # numpy's matrix products choose their kernels by themselves
    done = subprocess.run([sys.executable, "-c", DIGEST], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_made_up_figures_are_the_same_on_every_processor() -> None:
    plain = digests("")
    assert len(plain) == 10
    assert digests(OFF) == plain


def test_the_made_up_engine_is_what_it_was() -> None:
    """Its numbers come from raw bits, so a newer numpy can't change them, and the pictures with them, unnoticed."""
    engine = DemoEngine("capped", layers=4, experts=16, used=3, expert_bytes=1000)
    sample = [engine.step() for _ in range(20)][-1]
    assert sample.telemetry is not None
    assert (sample.telemetry.decode_tokens, sample.telemetry.expert_misses) == (115, 534)
    assert engine.uses[0].tolist() == [16, 34, 11, 4, 22, 7, 2, 13, 7, 15, 80, 32, 14, 15, 18, 55]


def made_map(heat: np.ndarray, residency: np.ndarray) -> ExpertMap:
    rows, columns = heat.shape
    return ExpertMap(
        n_layers=rows,
        n_experts=columns,
        layers=tuple(range(rows)),
        expert_bytes=(1000,) * rows,
        heat=heat.astype("<f4").tobytes(),
        residency=residency.astype("u1").tobytes(),
    )


def test_equals_are_told_apart_by_a_rule() -> None:
    """The last bits of a float decide nothing: equally hot experts come in the order of their numbers, and what lies on
    an edge lies on its lower side."""
    heat = np.full((2, 8), 0.3, np.float32)
    heat[1] = np.nextafter(np.float32(0.3), np.float32(1), dtype=np.float32)
    heat[1, 3] = np.nextafter(heat[1, 3], np.float32(1), dtype=np.float32)
    arrays = ExpertArrays(made_map(heat, np.zeros((2, 8))))
    assert arrays.hottest_miss() == (0, 0)
    cells = Cells(arrays, 2, 8)
    assert cells.level is not None
    assert set(cells.level.reshape(-1).tolist()) == {1}  # all are the average, which is an edge
    thirds = np.tile([85, 170, 255, 0], 5)[None, :]  # two of them are exactly half, added up in whatever order
    cells = Cells(ExpertArrays(made_map(np.ones((1, 20)), thirds)), 1, 1)
    assert cells.resident is not None
    assert cells.resident.tolist() == [[True]]


def test_heat_of_a_recording_reads_as_it_was_written() -> None:
    heat = np.array([[0.0, 1e-9, 0.01, 0.5, 1.0, 3.0, 500.0, 1e30]])
    source = made_map(heat, np.zeros_like(heat))
    again = MapDecoder().decode(MapEncoder().encode(source))
    assert again is not None
    assert again.heat is not None
    back = np.frombuffer(again.heat, "<f4")
    assert back[:6] == pytest.approx(heat[0, :6], rel=0.04, abs=0.003)
    twice = MapDecoder().decode(MapEncoder().encode(msgspec.structs.replace(again)))
    assert twice is not None
    assert twice.heat == again.heat


def test_a_map_of_any_numbers_is_drawn() -> None:
    """A recording may hold what no engine sends."""
    heat = np.array([[np.nan, np.inf, -np.inf, -3.0], [3e38, 3e38, 1e-45, 0.0]])
    arrays = ExpertArrays(made_map(heat, np.zeros_like(heat)))
    assert Cells(arrays, 2, 4).level is not None
    assert arrays.hottest_miss() == (1, 0)


def test_distances_are_whole_bytes() -> None:
    meter = ReuseMeter(8, 300, [1_000_003] * 8, max_sampled=100)
    assert meter.rate < 1
    assert (meter._bytes == np.rint(meter._bytes)).all()
