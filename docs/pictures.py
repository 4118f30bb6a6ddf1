#!/usr/bin/env python3
"""Makes the README's pictures: the real app on the guide, asked real questions, as SVG frames.

python docs/pictures.py                                  # docs/{screenshot,experts,models}.svg, docs/demo.svg in motion
python docs/pictures.py --replay RUN.fmrec docs/gpu.svg  # a recording of the monitor, made anywhere, near its end
python docs/pictures.py --replay RUN.fmrec OUT.svg --at 0.5 --size 200x60 --map
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUESTIONS = ("How do experts stream from the SSD?", "Which key stops an answer?")


async def main() -> None:
    from backends.interface import LoadRequest
    from flashmoe.paths import guide_model
    from tui.app import AppOptions, FlashmoeApp

    request = LoadRequest(path=str(guide_model()))
    app = FlashmoeApp(AppOptions(request=request, defaults=request, demo=True))
    frames: list[str] = []

    def shot() -> None:
        picture = app.export_screenshot()
        if not frames or picture != frames[-1]:
            frames.append(picture)

    async with app.run_test(size=(120, 36)) as pilot:
        while app.controller.state != "ready":
            await pilot.pause(0.05)
        await pilot.pause(2)
        shot()
        for question in QUESTIONS:
            await pilot.press(*question)
            shot()
            await pilot.press("enter")
            for _ in range(3):
                await pilot.pause(0.25)
                shot()
            while app.controller.busy:
                await pilot.pause(0.1)
            await pilot.pause(1.5)
            shot()
        app.save_screenshot("screenshot.svg", path=str(HERE))
        await pilot.press("ctrl+x", "m")
        await pilot.pause(1)
        app.save_screenshot("experts.svg", path=str(HERE))
        await pilot.press("escape")
        await pilot.press("ctrl+o")
        await pilot.pause(2)
        app.save_screenshot("models.svg", path=str(HERE))
        await app.controller.close()
    (HERE / "demo.svg").write_text(animated(frames, seconds=1.4))


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


def animated(frames: list[str], seconds: float) -> str:
    """One SVG that shows the frames in turn, over and over; the last one stays four times as long."""
    view = re.search(r'viewBox="([^"]+)"', frames[0])
    assert view is not None
    steps = len(frames) + 3
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view[1]}">']
    for i, frame in enumerate(frames):
        states = ["visible" if i == min(k, len(frames) - 1) else "hidden" for k in range(steps)]
        parts.append(f'<g visibility="{states[0]}">')
        parts.append(
            f'<animate attributeName="visibility" calcMode="discrete" dur="{steps * seconds:g}s" '
            f'repeatCount="indefinite" values="{";".join(states)}"/>'
        )
        parts.append(frame + "</g>")
    return "\n".join([*parts, "</svg>\n"])


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
        o = a.parse_args()
        columns, _, rows = o.size.partition("x")
        if o.replay:
            asyncio.run(replayed(*o.replay, o.at, (int(columns), int(rows)), o.map))
        else:
            asyncio.run(main())
