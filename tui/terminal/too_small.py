"""Under 40 x 12 there is only a sentence, whatever the screen; what was open, typed and focused comes back later."""

from __future__ import annotations

from typing import Any

from textual.app import App
from textual.content import Content
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget

LEAST_COLUMNS, LEAST_ROWS = 40, 12


SMALL_CSS = """
.-too-small { align: left top !important; background: $background !important; }
.-too-small > *, .-too-small Toast { display: none !important; }
.-too-small > TooSmall { display: block !important; }
"""
"""For the app's own sheet: what widgets say by default can't win over the rules of screens."""


class TooSmall(Widget):
    """The sentence; shown while its screen has the class ``-too-small``, which hides everything else, toasts too."""

    DEFAULT_CSS = """
    TooSmall { display: none; width: 1fr; height: 1fr; content-align: center middle; text-align: center; }
    """

    def render(self) -> Content:
        """The sentence."""
        return Content(
            f"This terminal is smaller than {LEAST_COLUMNS} x {LEAST_ROWS}.\nEnlarge it to continue; nothing is lost."
        )


class SmallTerminal:
    """Puts the sentence over whatever screen is shown while the terminal is too small."""

    def __init__(self, app: App[Any]) -> None:
        self._app = app
        self._small = False
        self._focused: dict[Screen[Any], Widget | None] = {}

    def resized(self, size: Size) -> None:
        """The terminal has this size now."""
        small = 0 < size.width < LEAST_COLUMNS or 0 < size.height < LEAST_ROWS
        if small == self._small:
            return
        self._small = small
        if small:
            self.screen_changed(self._app.screen)
            return
        for screen, focused in self._focused.items():
            screen.remove_class("-too-small")
            if focused is not None and focused.is_attached and screen.is_attached:
                screen.set_focus(focused)  # a widget that is hidden loses the focus
        self._focused.clear()

    def screen_changed(self, screen: Screen[Any]) -> None:
        """Another screen is shown."""
        if not self._small or screen in self._focused:
            return
        self._focused[screen] = screen.focused
        if not screen.query(TooSmall):
            screen.mount(TooSmall())
        screen.add_class("-too-small")
