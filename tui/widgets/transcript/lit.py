"""What is looked for is lit wherever it is drawn."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

STYLE = "bold reverse"


class Lit:
    """The text that is lit in all chats of this app; empty: none."""

    text = ""


def lit(line: Content) -> Content:
    """A piece of drawn text with what is looked for lit."""
    wanted = Lit.text.casefold()
    if not wanted:
        return line
    plain = line.plain.casefold()
    if len(plain) != len(line.plain):  # a letter whose folded form is longer: found only as it is written
        plain, wanted = line.plain, Lit.text
    start = plain.find(wanted)
    while start >= 0:
        line = line.stylize(STYLE, start, start + len(wanted))
        start = plain.find(wanted, start + len(wanted))
    return line


def light(below: Widget, text: str) -> None:
    """Lights `text` in everything below a widget from now on; empty: nothing."""
    Lit.text = text
    for widget in below.walk_children(Widget):
        redraw = getattr(widget, "light_changed", None)
        if redraw is not None:
            redraw()
        elif isinstance(widget, Static):
            widget.refresh(layout=False)
