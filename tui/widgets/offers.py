"""What could complete a / command as it is typed: a few lines over the composer, one of them marked."""

from __future__ import annotations

from typing import NamedTuple

from textual.content import Content
from textual.widget import Widget

from flashmoe.text_safety import visible_line
from tui.texts import whole_words

MOST = 8


class Offer(NamedTuple):
    """One completion."""

    text: str
    """What the composer holds when it is taken."""
    label: str
    detail: str = ""
    runs: bool = True
    """Enter runs it at once; else it waits for more to be typed."""


class OfferList(Widget):
    """Shows offers; the composer says which is marked."""

    DEFAULT_CSS = """
    OfferList { height: auto; margin: 0 1; padding: 0 2; display: none; background: $panel; color: $foreground; }
    OfferList.-some { display: block; }
    """

    def __init__(self) -> None:
        super().__init__(id="offers")
        self._offers: list[Offer] = []
        self._marked = 0

    def show(self, offers: list[Offer], marked: int) -> None:
        """Shows these, `marked` among them."""
        if (offers, marked) == (self._offers, self._marked):
            return
        taller = len(offers) != len(self._offers)
        self._offers, self._marked = offers, marked
        self.set_class(bool(offers), "-some")
        self.refresh(layout=taller)

    def render(self) -> Content:
        """A window of lines around the marked one."""
        first = min(max(0, self._marked - MOST + 1), max(0, len(self._offers) - MOST))
        shown = self._offers[first : first + MOST]
        width = min(32, max((Content(offer.label).cell_length for offer in shown), default=0))
        lines, room = [], max(10, self.size.width)
        for index, offer in enumerate(shown, first):
            label = Content(visible_line(offer.label, 32))
            line = Content.assemble(
                ("▸ " if index == self._marked else "  ", "bold $primary"),
                label.stylize("bold"),
                " " * max(2, width + 2 - label.cell_length),
                (whole_words(visible_line(offer.detail, 200), room - 4 - width), "$foreground-muted"),
            )
            lines.append(line.truncate(room, ellipsis=True))
        return Content("\n").join(lines)
