"""Numbers as people read them, in the app and in every command: the only place that knows how.

Memory and files are in binary units (GiB, MiB, KiB), what goes over a line or comes from a disk in decimal ones (GB/s,
MB/s, kB/s), as those are sold. Widths don't jump about: the unit follows `scale` where one is given, not the value. A
value that isn't known is ``-``.
"""

from __future__ import annotations

import time

GIB = 1 << 30
MIB = 1 << 20
UNKNOWN = "-"

_BINARY = ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB"), (1, "B"))
_DECIMAL = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))
_NEARLY = 0.95
"""So much of a unit is shown in it: ``1.0 GiB`` rather than ``993 MiB``."""


def binary_unit(scale: float) -> tuple[int, str]:
    """(divisor, unit) in which `scale` bytes read as about 1 to 1000."""
    return next(((divisor, name) for divisor, name in _BINARY if scale >= _NEARLY * divisor), (1, "B"))


def rate_unit(scale: float) -> tuple[float, str]:
    """(divisor, unit) in which a rate of `scale` bytes per second reads as about 1 to 1000."""
    return next(((divisor, name) for divisor, name in _DECIMAL if scale >= _NEARLY * divisor), (1.0, "B/s"))


def size(n: float | None, scale: float | None = None, *, unit: bool = True) -> str:
    """Bytes in the unit of `scale` (or their own): ``6.0 GiB``, ``24 MiB``, ``12 KiB``."""
    if n is None:
        return UNKNOWN
    divisor, name = binary_unit(max(scale if scale is not None else abs(n), 1))
    shown = n / divisor
    digits = 0 if name in ("B", "KiB") or abs(shown) >= (9.95 if name == "MiB" else 99.95) else 1
    return f"{shown:.{digits}f} {name}" if unit else f"{shown:.{digits}f}"


def rate(n: float | None, scale: float | None = None, *, unit: bool = True) -> str:
    """Bytes per second in the unit of `scale` (or their own): ``1.21 GB/s``, ``4.8 MB/s``, ``412 kB/s``."""
    if n is None:
        return UNKNOWN
    divisor, name = rate_unit(max(scale if scale is not None else abs(n), 1))
    shown = n / divisor
    digits = {"TB/s": 2, "GB/s": 2, "MB/s": 1}.get(name, 0)
    if abs(shown) >= (99.5 if digits == 2 else 9.95):
        digits = 0
    return f"{shown:.{digits}f} {name}" if unit else f"{shown:.{digits}f}"


def speed(tok_s: float | None) -> str:
    """Tokens per second: ``0.31``, ``4.8``, ``212``."""
    if tok_s is None:
        return UNKNOWN
    return f"{tok_s:.2f}" if tok_s < 0.995 else f"{tok_s:.1f}" if tok_s < 99.95 else f"{tok_s:.0f}"


def count(n: int) -> str:
    """How many: ``987``, ``2.1k``, ``32k``, ``1.0M``."""
    if n < 1000:
        return str(n)
    if n < 9_950:
        return f"{n / 1000:.1f}k"
    if n < 999_500:
        return f"{n / 1000:.0f}k"
    return f"{n / 1_000_000:.1f}M"


def number(value: float | None, digits: int = 3) -> str:
    """`value` in as many figures as matter: ``0.12``, ``1.23``, ``12.3``, ``123``."""
    if value is None:
        return UNKNOWN
    magnitude = abs(value)
    if magnitude >= 10 ** (digits - 1) - 0.5:
        return f"{value:.0f}"
    if magnitude >= 10 ** (digits - 2) - 0.05:
        return f"{value:.{max(0, digits - 2)}f}"
    return f"{value:.{max(0, digits - 1)}f}"


def percent(share: float | None) -> str:
    """``84 %``, three places wide."""
    return f"  {UNKNOWN} %" if share is None else f"{min(max(share, 0.0), 9.99) * 100:3.0f} %"


def duration(seconds: float | None) -> str:
    """``12 ms``, ``3.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``; ``-`` for what never ends, too."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return UNKNOWN
    if seconds < 0.00095:
        return f"{seconds * 1e6:.0f} µs" if seconds > 0 else "0 s"
    if seconds < 0.00995:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def roughly(seconds: float | None) -> str:
    """A time that is left, no finer than it can be known: ``40 s``, ``5 min``, ``2 h 10 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """A place in a recording: ``4:07`` or ``1:04:07``."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def bar(share: float, width: int, full: str = "▰", empty: str = "▱") -> str:
    """A bar of `width` cells; anything above nothing shows at least one cell, and full only when it is full."""
    share = min(max(share, 0.0), 1.0)
    cells = int(share * width + 1e-9)
    if share > 0:
        cells = max(cells, 1)
    return full * cells + empty * (width - cells)


def ago(then: float, now: float) -> str:
    """How long ago, roughly: ``just now``, ``5 min ago``, ``yesterday``, ``12 Mar 2026``."""
    seconds = now - then
    if then <= 0:
        return "–"
    if -60 < seconds < 60:
        return "just now"
    if 0 <= seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    if 0 <= seconds < 86_400:
        return f"{int(seconds // 3600)} h ago"
    if 0 <= seconds < 2 * 86_400:
        return "yesterday"
    if 0 <= seconds < 14 * 86_400:
        return f"{int(seconds // 86_400)} days ago"
    return time.strftime("%d %b %Y", time.localtime(then)).lstrip("0")


def day_and_time(moment: float) -> str:
    """``2026-03-12 14:05``, local; ``–`` for 0, which stands for an unknown time."""
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment > 0 else "–"
