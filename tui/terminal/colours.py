"""The colours and characters that this terminal has, put in force for an app: chosen here, not left to be rounded."""

from __future__ import annotations

from typing import Any

from rich.color import ColorSystem
from textual.app import App
from textual.filter import Monochrome, NoColor
from textual.style import Style
from textual.widget import Widget
from textual.widgets import OptionList

from tui.terminal import facts

_SYSTEMS = {"truecolor": ColorSystem.TRUECOLOR, "256": ColorSystem.EIGHT_BIT, "16": ColorSystem.STANDARD}


def _with_reverse(self: OptionList, *component_classes: str, partial: bool = False) -> Style:
    """As the widget's own, which forgets ``text-style: reverse`` of a component (Textual 8.2.8): where there are no
    colours nothing else shows which row is selected."""
    style = Widget.get_visual_style(self, *component_classes, partial=partial)
    reverse = any(self.get_component_styles(name).text_style.reverse for name in component_classes)
    return style + Style(reverse=True) if reverse else style


OptionList.get_visual_style = _with_reverse  # type: ignore[assignment, method-assign]  # in Textual's palette, too


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
        from tui.terminal.ascii import Ascii

        app._filters.append(Ascii())
