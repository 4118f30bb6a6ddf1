"""Numbers for people that stand still: the unit follows the scale, not the value, and the width is fixed."""

from __future__ import annotations

_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_DECIMAL = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))


def binary_unit(scale: float) -> tuple[int, str]:
    """(divisor, unit) in which `scale` reads as 1 to 1023."""
    return next(((d, u) for d, u in _BINARY if scale >= d), (1, "B"))


def rate_unit(scale: float) -> tuple[float, str]:
    """(divisor, unit) in which a rate of `scale` bytes per second reads as 1 to 999."""
    return next(((d, u) for d, u in _DECIMAL if scale >= d), (1.0, "B/s"))


def number(value: float | None, digits: int = 3) -> str:
    """`value` in as many figures as matter: 0.12, 1.23, 12.3, 123; ``–`` for unknown."""
    if value is None:
        return "–"
    size = abs(value)
    if size >= 10 ** (digits - 1) - 0.5:
        return f"{value:.0f}"
    if size >= 10 ** (digits - 2) - 0.05:
        return f"{value:.{max(0, digits - 2)}f}"
    return f"{value:.{max(0, digits - 1)}f}"


def size(value: float | None, scale: float | None = None, *, unit: bool = True) -> str:
    """Bytes in the binary unit of `scale` (or its own): ``9.4 GiB``."""
    if value is None:
        return "–"
    divisor, name = binary_unit(max(scale if scale is not None else value, 1))
    shown = value / divisor
    text = f"{shown:.0f}" if name in ("B", "KiB") or shown >= 99.95 else f"{shown:.1f}"
    return f"{text} {name}" if unit else text


def rate(value: float | None, scale: float | None = None, *, unit: bool = True) -> str:
    """Bytes per second in the decimal unit of `scale` (or its own): ``1.21 GB/s``."""
    if value is None:
        return "–"
    divisor, name = rate_unit(max(scale if scale is not None else value, 1))
    shown = value / divisor
    text = f"{shown:.2f}" if name in ("GB/s", "TB/s") and shown < 99.5 else f"{shown:.0f}"
    return f"{text} {name}" if unit else text


def percent(share: float | None) -> str:
    """``84 %``, three places wide."""
    return "  – %" if share is None else f"{min(max(share, 0.0), 9.99) * 100:3.0f} %"


def duration(seconds: float | None) -> str:
    """``0.8 ms``, ``12 ms``, ``3.4 s``."""
    if seconds is None:
        return "–"
    if seconds < 0.00095:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.00995:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else clock(seconds)


def clock(seconds: float) -> str:
    """``4:07`` or ``1:04:07``."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def speed(tok_s: float | None) -> str:
    """Tokens per second: ``0.31``, ``4.8``, ``212``."""
    if tok_s is None:
        return "–"
    return f"{tok_s:.2f}" if tok_s < 0.995 else f"{tok_s:.1f}" if tok_s < 99.95 else f"{tok_s:.0f}"
