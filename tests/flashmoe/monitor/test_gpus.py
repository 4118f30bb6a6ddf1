"""Several GPUs: nvidia-ml-py itself over a driver library that answers as one of several GPUs would, and their pane."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs

from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.sample import Gpu, Sample
from tests.monitor_demo import GUIDE, DemoEngine, feed_of
from tests.places import TESTS
from tui.widgets.monitor import sections
from tui.widgets.monitor.column import MonitorColumn

MIB, GIB = 1 << 20, 1 << 30
HERE = TESTS
SCRIPT = """
import json, msgspec
from flashmoe.monitor.gpu import GpuMeter
meter = GpuMeter()
for pid in (4711, 99, None):
    gpus, note = meter.read(pid)
    print(json.dumps([msgspec.to_builtins(gpus), note]))
meter.close()
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(HERE / "nvml_stand_in.c")]
    subprocess.run(command, check=True)
    return folder


def read(driver: Path, gpus: int) -> list[tuple[tuple[Gpu, ...], str | None]]:
    """What the meter says for the engine 4711, for a process without VRAM, and for no engine."""
    env = os.environ | {"LD_LIBRARY_PATH": str(driver), "STAND_IN_GPUS": str(gpus), "WATCHED_PID": "4711"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, cwd=HERE.parent, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(tuple(Gpu(**gpu) for gpu in found), note) for found, note in lines]


def test_each_gpu_is_read(driver: Path) -> None:
    (engine, note), (other, _), (nobody, _) = read(driver, 2)
    assert note is None
    assert [(g.index, g.name, g.total, g.used, g.busy) for g in engine] == [
        (0, "NVIDIA Stand-in A", 80 * GIB, 1 * GIB, 0.1),
        (1, "NVIDIA Stand-in B", 80 * GIB, 2 * GIB, 0.2),
    ]
    assert [g.engine_used for g in engine] == [300 * MIB, 200 * MIB]
    # NVML may not see a process of another container, so none is not zero
    assert [g.engine_used for g in other] == [None, None]
    assert [g.engine_used for g in nobody] == [None, None]


def test_a_gpu_that_does_not_answer_is_left_out_and_one_without_the_engine_holds_nothing_of_it(driver: Path) -> None:
    engine, _ = read(driver, 4)[0]
    assert [g.index for g in engine] == [0, 1, 3]
    assert [g.engine_used for g in engine] == [300 * MIB, 200 * MIB, 0]


def column(gpus: tuple[Gpu, ...]) -> MonitorColumn:
    feed, engine = MonitorFeed(), DemoEngine("gpu", **GUIDE)
    for _ in range(4):
        sample = engine.step()
        feed.push(Sample(t=sample.t, wall=sample.wall, memory=sample.memory, gpus=gpus))
    return MonitorColumn(feed)


def text(pane: MonitorColumn, width: int, height: int) -> str:
    return "\n".join(line.plain for line in pane.make_lines(width, height))


def test_the_pane_shows_what_the_engine_holds_of_each_gpu() -> None:
    pane = column(
        tuple(
            Gpu(index=i, name="GPU", total=80 * GIB, used=(i + 3) * GIB, engine_used=(i + 1) * GIB, busy=0.25)
            for i in range(2)
        )
    )
    shown = text(pane, 40, 36)
    assert "engine 1.0 GiB · 25 % busy" in shown
    assert "engine 2.0 GiB · 25 % busy" in shown
    assert " 3.0 / 80.0 GiB" in shown
    assert " 4.0 / 80.0 GiB" in shown
    short = text(pane, 40, 24)  # a line each where rows are few
    assert "GPU0" in short
    assert "GPU1" in short
    assert "own 1.0 · 3.0 / 80.0 GiB" in short.replace("  ", " ")


def test_eight_gpus_have_a_line_each() -> None:
    pane = column(
        tuple(Gpu(index=i, name="GPU", total=80 * GIB, used=3 * GIB, engine_used=GIB, busy=None) for i in range(8))
    )
    shown = text(pane, 40, 60)
    assert all(f"GPU{i}" in shown for i in range(8))
    assert all(len(line) == 40 for line in shown.splitlines())


def test_a_gpu_without_a_meter_is_not_said_to_be_missing() -> None:
    """NVML and amdgpu are read; with Intel's card, in a build for Vulkan, the pane said "no GPU here"."""
    _, feed = feed_of("capped", 8.0)
    assert feed.model is not None

    def vram(layers: int, taken: int | None) -> str:
        feed.model = structs.replace(feed.model, n_gpu_layers=layers, vram_bytes=taken)
        (line,) = (each.plain for each in sections.memory(feed, 50, 6) if each.plain.startswith("VRAM"))
        return line

    assert vram(0, None) == "VRAM no GPU here"
    assert vram(9, 300 * MIB) == "VRAM 300 MiB at load · no meter for this GPU"
    assert vram(9, None) == "VRAM no meter for this GPU"
