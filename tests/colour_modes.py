"""The colour modes that pictures are taken in: 24-bit, 256 colours, 16 colours, NO_COLOR, high contrast."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual.app import App
from textual.color import Color
from textual.filter import LineFilter

MODES = ("24-bit", "256", "16", "none", "contrast")


class Palette256(LineFilter):
    """What a terminal of 256 colours shows: each colour's nearest of its palette, as Rich chooses it."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text, style and nearest(style), control) for text, style, control in segments]


@lru_cache(4096)
def nearest(style: Style) -> Style:
    def reduced(colour: Any) -> Any:
        if colour is None or colour.is_default:
            return colour
        return type(colour).from_triplet(colour.downgrade(ColorSystem.EIGHT_BIT).get_truecolor())

    return style + Style(color=reduced(style.color), bgcolor=reduced(style.bgcolor))


def prepare(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Sets the environment of a mode; before the app is made."""
    monkeypatch.setenv("COLORTERM", "truecolor")
    for variable in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    if mode == "none":
        monkeypatch.setenv("NO_COLOR", "1")


def theme(mode: str) -> str | None:
    """The theme that the mode has of its own."""
    return {"16": "terminal", "contrast": "contrast"}.get(mode)


def finish(app: App[Any], mode: str) -> None:
    """What the app needs for the mode once it is made."""
    if mode == "256":
        app._filters.append(Palette256())
