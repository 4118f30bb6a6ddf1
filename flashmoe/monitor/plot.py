"""The curves of a recording as one SVG picture, written by hand: five panels over one time axis."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from flashmoe import figures
from flashmoe.monitor.analysis import frames
from flashmoe.monitor.frame import Frame
from flashmoe.monitor.recording import Recording, RecordingError

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 960, 110, 92, 24, 64, 34
_MAX_POINTS = 1200
_MAX_MODELS = 8
_INK, _PALE, _GRID, _PAPER = "#2d2a26", "#7a746b", "#e4ded4", "#fbf7f0"
_READ, _COMPUTE, _OTHER = "#b5541a", "#4f6b7a", "#b9a04a"

_Line = tuple[str, str, list[float | None]]
_Pick = Callable[[Frame], float | None]


class _Panel:
    """One panel: a title, its lines, and how its scale is written."""

    def __init__(self, title: str, lines: list[_Line], unit: str, ceiling: float | None = None) -> None:
        self.title, self.unit, self.ceiling = title, unit, ceiling
        self.lines = [line for line in lines if any(value is not None for value in line[2])]
        seen = [value for line in self.lines for value in line[2] if value is not None]
        self.top = 1.0 if unit == "share" else _nice(max([*seen, ceiling or 0.0, 1e-9]), unit)

    def label(self, value: float) -> str:
        """A value on the scale."""
        if self.unit == "share":
            return f"{value * 100:.0f} %"
        if self.unit == "bytes":
            return figures.size(value, self.top)
        if self.unit == "bytes/s":
            return figures.rate(value, self.top)
        return figures.number(value)


def _nice(value: float, unit: str) -> float:
    base = 2.0 if unit == "bytes" else 10.0
    power = base ** math.floor(math.log(value, base))
    steps = (1.0, 1.5, 2.0) if unit == "bytes" else (1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
    return next(power * step for step in steps if power * step >= value * 0.9999)


def svg(recording: Recording) -> str:
    """The picture's text."""
    curves = _Curves(recording)
    curve, times, ceiling = curves.by_name, curves.times, curves.ceiling
    panels = [
        _Panel("speed, tokens/s", [("speed", _READ, curve["speed"])], "tok/s"),
        _Panel(
            "reads from the SSD",
            [("others", _OTHER, curve["others"]), ("engine", _READ, curve["read"])],
            "bytes/s",
            ceiling,
        ),
        _Panel(
            "hit rate, and the share of time spent waiting for reads",
            [("waiting", _READ, curve["waiting"]), ("hit rate", _COMPUTE, curve["hits"])],
            "share",
        ),
        _Panel(
            "RAM",
            [
                ("in use", _OTHER, curve["ram"]),
                ("engine's own", _COMPUTE, curve["own"]),
                ("experts", _READ, curve["experts"]),
            ],
            "bytes",
        ),
        _Panel("VRAM", [("in use", _COMPUTE, curve["vram"])], "bytes"),
    ]
    panels = [panel for panel in panels if panel.lines]
    height = _TOP + len(panels) * (_PANEL + _GAP) + 24
    duration = max(times[-1], 1e-9)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>',
        _text(_LEFT, 28, ", ".join(curves.models) or "no model", _INK, size=17, weight="bold"),
        _text(_LEFT, 46, f"{figures.clock(recording.duration)} recorded, {len(recording.samples)} samples", _PALE),
    ]
    for index, panel in enumerate(panels):
        out += _draw(panel, times, duration, _TOP + index * (_PANEL + _GAP) + 16)
    bottom = height - 14
    for tick in range(5):
        seconds = duration * tick / 4
        anchor = "start" if tick == 0 else "end" if tick == 4 else "middle"
        out.append(_text(_x(seconds, duration), bottom, figures.clock(seconds), _PALE, anchor=anchor))
    return "\n".join([*out, "</svg>\n"])


class _Curves:
    """The curves of a recording in at most `_MAX_POINTS` points, each the mean of its samples; never all of them as
    objects, of which a long recording would have millions."""

    def __init__(self, recording: Recording) -> None:
        self.by_name: dict[str, list[float | None]] = {name: [] for name in _PICKS}
        self.times: list[float] = []
        self.models: list[str] = []
        self.ceiling: float | None = None
        step = max(1, math.ceil(len(recording.samples) / _MAX_POINTS))
        start: float | None = None
        group: list[Frame] = []
        for frame, feed in frames(recording):
            start = frame.t if start is None else start
            group.append(frame)
            if feed.model is not None:
                if feed.model.name not in self.models and len(self.models) < _MAX_MODELS:
                    self.models.append(feed.model.name)
                self.ceiling = self.ceiling or feed.model.disk_bytes_s
            if len(group) == step:
                self._point(group, start)
                group = []
        if group and start is not None:
            self._point(group, start)

    def _point(self, group: list[Frame], start: float) -> None:
        self.times.append(group[0].t - start)
        for name, pick in _PICKS.items():
            self.by_name[name].append(_mean([pick(frame) for frame in group]))


def _draw(panel: _Panel, times: Sequence[float], duration: float, y: float) -> list[str]:
    out = [_text(_LEFT, y - 6, panel.title, _INK, weight="bold")]
    for part in (0.0, 0.5, 1.0):
        level = y + _PANEL * (1 - part)
        out.append(f'<path d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}" stroke="{_GRID}"/>')
        out.append(_text(_LEFT - 8, level + 4, panel.label(panel.top * part), _PALE, anchor="end"))
    if panel.ceiling:
        level = y + _PANEL * (1 - min(1.0, panel.ceiling / panel.top))
        out.append(f'<path d="M{_LEFT} {level:.1f}H{_WIDTH - _RIGHT}" stroke="{_PALE}" stroke-dasharray="4 4"/>')
        out.append(_text(_WIDTH - _RIGHT, level - 4, "measured maximum", _PALE, anchor="end", size=10))
    right = float(_WIDTH - _RIGHT)
    for name, colour, _ in reversed(panel.lines):
        if len(panel.lines) > 1:
            out.append(_text(right, y - 6, name, colour, anchor="end"))
            right -= 7.0 * len(name) + 14
    for _, colour, values in panel.lines:
        path, pen = [], False
        for t, value in zip(times, values, strict=True):
            if value is None:
                pen = False
                continue
            level = y + _PANEL * (1 - min(1.0, max(0.0, value / panel.top)))
            path.append(f"{'L' if pen else 'M'}{_x(t, duration):.1f} {level:.1f}")
            pen = True
        out.append(
            f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'
        )
    return out


def _x(t: float, duration: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * t / duration


def _text(
    x: float, y: float, text: str, colour: str, *, anchor: str = "start", size: int = 12, weight: str = "normal"
) -> str:
    clean = escape("".join(char for char in text if char.isprintable()))
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}">{clean}</text>'
    )


def write_plot(recording: Recording, target: Path) -> None:
    """Writes an ``.svg``, or a ``.png`` where something on this machine can turn one into the other.

    Raises `RecordingError` with what to do.
    """
    kind = target.suffix.lower()
    if kind not in (".svg", ".png"):
        raise RecordingError(f"{target.name} must end in .svg or .png.")
    picture = svg(recording).encode()
    try:
        target.write_bytes(picture if kind == ".svg" else _png(picture))
    except OSError as error:
        raise RecordingError(f"Can't write {target} ({error.strerror}).") from None


def _png(picture: bytes) -> bytes:
    try:
        import cairosvg
    except (ImportError, OSError):  # OSError: the package is there, libcairo isn't
        pass
    else:
        return bytes(cairosvg.svg2png(bytestring=picture, scale=2.0))
    for command in (["rsvg-convert", "--zoom", "2"], ["magick", "svg:-", "png:-"], ["convert", "svg:-", "png:-"]):
        if shutil.which(command[0]):
            done = subprocess.run(command, input=picture, capture_output=True, check=False, timeout=60)
            if done.returncode == 0 and done.stdout.startswith(b"\x89PNG"):
                return done.stdout
    raise RecordingError(
        "No program here makes a PNG of an SVG: write an .svg, or install cairosvg (pip) or rsvg-convert (librsvg)."
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _speed(frame: Frame) -> float | None:
    return frame.tok_s if frame.phase in ("decode", "prefill") else 0.0 if frame.phase == "idle" else None


def _hits(frame: Frame) -> float | None:
    work = frame.prefill if frame.phase == "prefill" else frame.decode
    return work.hit_rate if work is not None and frame.phase in ("decode", "prefill") else None


def _waiting(frame: Frame) -> float | None:
    work = frame.prefill if frame.phase == "prefill" else frame.decode
    if work is None or work.stall_s is None or not work.total_s or frame.phase not in ("decode", "prefill"):
        return None
    return work.stall_s / work.total_s


_PICKS: dict[str, _Pick] = {
    "speed": _speed,
    "others": lambda f: f.others_s,
    "read": lambda f: f.read_s,
    "waiting": _waiting,
    "hits": _hits,
    "ram": lambda f: f.ram_used,
    "own": lambda f: f.engine_own,
    "experts": lambda f: f.resident,
    "vram": lambda f: sum(g.used for g in f.gpus) if f.gpus else None,
}
