"""The colours and characters that this terminal has, put in force for an app: chosen here, not left to be rounded."""

from __future__ import annotations

from typing import Any

from rich.color import ColorSystem
from textual.app import App
from textual.filter import Monochrome, NoColor

from tui.terminal import facts
from tui.terminal.ascii import Ascii

_SYSTEMS = {"truecolor": ColorSystem.TRUECOLOR, "256": ColorSystem.EIGHT_BIT, "16": ColorSystem.STANDARD}


def use_terminal(app: App[Any], characters: str) -> None:
    """To be called before the first theme is taken. `characters` is the setting ``ui.characters``."""
    mode = facts.colours()
    app.console._color_system = _SYSTEMS.get(mode, ColorSystem.STANDARD)
    app.no_color = mode == "none"
    # Textual's shades of grey are colours, too, and of 16 there are four.
    app._filters[:] = [each for each in app._filters if not isinstance(each, Monochrome | NoColor)]
    if app.no_color:
        app._filters.append(NoColor())
    if characters == "ascii" or (characters == "auto" and facts.without_drawing()):
        app._filters.append(Ascii())
