"""Numbers as people read them; units and widths that don't jump about."""

from __future__ import annotations

GIB = 1 << 30
MIB = 1 << 20


def size(n: float | None) -> str:
    """Bytes as ``6.0 GiB``, ``24 MiB``, ``12 kB``; ``–`` for None."""
    if n is None:
        return "–"
    if n >= 0.95 * GIB:
        return f"{n / GIB:.1f} GiB" if n < 100 * GIB else f"{n / GIB:.0f} GiB"
    if n >= 0.95 * MIB:
        return f"{n / MIB:.1f} MiB" if n < 10 * MIB else f"{n / MIB:.0f} MiB"
    return f"{n / 1000:.0f} kB" if n >= 1000 else f"{n:.0f} B"


def count(n: int) -> str:
    """``987``, ``2.1k``, ``32k``, ``1.0M``."""
    if n < 1000:
        return str(n)
    if n < 9_950:
        return f"{n / 1000:.1f}k"
    if n < 999_500:
        return f"{n / 1000:.0f}k"
    return f"{n / 1_000_000:.1f}M"


def rate(tok_s: float | None) -> str:
    """Tokens a second: ``4.8``, ``37``, ``412``; ``–`` for None."""
    if tok_s is None:
        return "–"
    return f"{tok_s:.2f}" if tok_s < 1 else f"{tok_s:.1f}" if tok_s < 20 else f"{tok_s:.0f}"


def duration(seconds: float) -> str:
    """``0.8 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bar(share: float, width: int, full: str = "▰", empty: str = "▱") -> str:
    """A bar of `width` cells; anything above nothing shows at least one cell, and full only when it is full."""
    share = min(max(share, 0.0), 1.0)
    cells = int(share * width + 1e-9)
    if share > 0:
        cells = max(cells, 1)
    return full * cells + empty * (width - cells)


def ago(then: float, now: float) -> str:
    """How long ago, roughly: ``just now``, ``5 min ago``, ``yesterday``, ``12 Mar 2026``."""
    import time

    seconds = now - then
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    if seconds < 86_400:
        return f"{int(seconds // 3600)} h ago"
    if seconds < 2 * 86_400:
        return "yesterday"
    if seconds < 14 * 86_400:
        return f"{int(seconds // 86_400)} days ago"
    return time.strftime("%d %b %Y", time.localtime(then)).lstrip("0")
