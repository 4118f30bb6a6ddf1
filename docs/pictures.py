#!/usr/bin/env python3
"""Makes the README's pictures: the real app on the guide, asked real questions. The one that moves is a recording, at
its own speed: each change of the screen when it came.

python docs/pictures.py                                  # docs/{screenshot,experts,models}.svg, docs/demo.svg in motion
python docs/pictures.py --disk 1                         # the same from a disk slowed to 1 MB/s, as root
python docs/pictures.py --replay RUN.fmrec docs/gpu.svg  # a recording of the monitor, made anywhere, near its end
python docs/pictures.py --replay RUN.fmrec OUT.svg --at 0.5 --size 200x60 --map
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import moving

if TYPE_CHECKING:
    from flashmoe.monitor.feed import MonitorFeed

HERE = Path(__file__).resolve().parent
QUESTIONS = ("How do experts stream from the SSD?", "What is an expert?")
POOL_BYTES = 5 << 20
"""What the guide's experts may hold in the recording, of 13 MiB: the rest streams, as of one larger than memory."""
LOOK_S = 0.1
"""Between two looks at the screen."""
TYPING_S = 0.12
"""As long as two looks are apart, at most, while nothing is answered."""


async def main() -> None:
    from backends.interface import LoadRequest
    from flashmoe.paths import guide_model
    from tui.app import AppOptions, FlashmoeApp

    request = LoadRequest(path=str(guide_model()), backend="stream", store="pool", ram_bytes=POOL_BYTES)
    app = FlashmoeApp(AppOptions(request=request, defaults=request, demo=True))
    frames: list[tuple[float, str]] = []

    async def look_on() -> None:
        when, before = 0.0, time.monotonic()
        while True:
            picture, now = app.export_screenshot(), time.monotonic()
            passed = now - before
            when += passed if app.controller.busy else min(passed, TYPING_S)  # its own speed is an answer's
            before = now
            if not frames or moving.content(picture) != moving.content(frames[-1][1]):
                frames.append((when, picture))
            await asyncio.sleep(LOOK_S)

    async with app.run_test(size=(120, 36)) as pilot:
        while app.controller.state != "ready" or not measured(app.monitoring.feed):
            await pilot.pause(0.1)
        await pilot.pause(2)
        watching = asyncio.create_task(look_on())
        for question in QUESTIONS:
            for key in question:
                await pilot.press("space" if key == " " else key if key.isalnum() else "question_mark")
            await pilot.pause(0.5)
            await pilot.press("enter")
            await pilot.pause(0.5)
            while app.controller.busy:
                await pilot.pause(0.1)
            await pilot.pause(2)
        watching.cancel()
        app.save_screenshot("screenshot.svg", path=str(HERE))
        await pilot.press("ctrl+x", "m")
        await pilot.pause(1)
        app.save_screenshot("experts.svg", path=str(HERE))
        await pilot.press("escape")
        await pilot.press("ctrl+o")
        await pilot.pause(2)
        app.save_screenshot("models.svg", path=str(HERE))
        await app.controller.close()
    (HERE / "demo.svg").write_text(moving.moving(frames, rest=4))


def measured(feed: MonitorFeed | None) -> bool:
    """Whether the model's disk was probed."""
    return feed is not None and feed.model is not None and bool(feed.model.disk_bytes_s)


@contextlib.contextmanager
def slow_disk(model: Path, mb_s: float | None) -> Iterator[None]:
    """This program and its engine read from the model's disk at `mb_s` MB/s at most, by a cgroup; None: as it can."""
    if mb_s is None:
        yield
        return
    device = model.stat().st_dev
    number, limit = f"{os.major(device)}:{os.minor(device)}", int(mb_s * 1e6)
    groups = Path("/sys/fs/cgroup")
    new = (groups / "cgroup.controllers").exists()
    group = (groups if new else groups / "blkio") / f"flashmoe-pictures-{os.getpid()}"
    group.mkdir()
    try:
        if new:
            (group / "io.max").write_text(f"{number} rbps={limit}")
        else:
            (group / "blkio.throttle.read_bps_device").write_text(f"{number} {limit}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):
            (groups / "cgroup.procs" if new else groups / "blkio" / "cgroup.procs").write_text(str(os.getpid()))
            group.rmdir()


async def replayed(recording: Path, out: Path, at: float, size: tuple[int, int], full_map: bool) -> None:
    """A picture of `flashmoe-tui replay`, paused where `at` of the recording (0 to 1) was played."""
    from flashmoe.monitor.recording import Recording
    from tui.screens.replay import ReplayApp

    app = ReplayApp(Recording(recording))
    app.player.paused = True
    app.player.seek(app.player.duration * at)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        if full_map:
            await pilot.press("e", "h")
        await pilot.pause(0.8)
        app.look()
        await pilot.pause()
        app.save_screenshot(out.name, path=str(out.parent))


if __name__ == "__main__":
    os.environ.update(COLORTERM="truecolor", TERM="xterm-256color")
    for name in ("NO_COLOR", "SSH_CONNECTION", "SSH_TTY"):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as home:
        os.environ["FLASHMOE_HOME"] = home
        a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        a.add_argument("--replay", nargs=2, type=Path, metavar=("RECORDING", "OUT.svg"))
        a.add_argument("--at", type=float, default=0.9, help="which share of the recording was played, 0 to 1")
        a.add_argument("--size", default="120x36", help="columns x rows")
        a.add_argument("--map", action="store_true", help="the expert map on the whole screen")
        a.add_argument("--disk", type=float, metavar="MB_S", help="slow the disk down for the recording (root)")
        o = a.parse_args()
        columns, _, rows = o.size.partition("x")
        if o.replay:
            asyncio.run(replayed(*o.replay, o.at, (int(columns), int(rows)), o.map))
        else:
            from flashmoe.paths import guide_model

            with slow_disk(guide_model(), o.disk):
                asyncio.run(main())
