"""The bar that finds text in the shown chat: a field, and which match of how many is shown."""

from __future__ import annotations

from textual import events
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from tui.widgets.fields import LineField


class FindField(LineField):
    """Enter and the arrows walk the matches, Esc closes the bar."""

    def grab_key(self, event: events.Key) -> bool:
        """These keys mean something else here."""
        if event.key == "escape":
            self.post_message(FindBar.Closed())
        elif event.key in ("enter", "down", "ctrl+n"):
            self.post_message(FindBar.Stepped(1))
        elif event.key in ("shift+enter", "up", "ctrl+p"):
            self.post_message(FindBar.Stepped(-1))
        else:
            return False
        return True


class FindBar(Horizontal):
    """Hidden until it is opened; what is in it is made then, since no start waits for it."""

    DEFAULT_CSS = """
    FindBar { height: 1; padding: 0 2; display: none; background: $panel; }
    FindBar.-open { display: block; }
    FindBar FindField, FindBar FindField:focus {
        border: none; height: 1; width: 1fr; padding: 0; background: $panel;
    }
    FindBar Static { width: auto; height: 1; color: $text-muted; }
    """

    class Stepped(Message):
        """To the next match, or the previous one."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class Closed(Message):
        """Esc."""

    class Sought(Message):
        """Something else is looked for."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def on_input_changed(self, event: Input.Changed) -> None:
        """Another text."""
        event.stop()
        self.post_message(self.Sought(event.value))

    async def open(self) -> None:
        """Ready to type; what was looked for before is there, marked."""
        self.add_class("-open")
        if not self.children:
            field = FindField(select_on_focus=False)
            field.cursor_blink = False
            await self.mount(Static("find ", markup=False), field, Static("", id="find-count", markup=False))
        field = self.query_one(FindField)
        field.focus()
        field.select_all()

    def close(self) -> None:
        """Gone, with its text."""
        self.remove_class("-open")
        for field in self.query(FindField):
            field.value = ""

    def count(self, index: int | None, total: int) -> None:
        """``3 of 12``; None: nothing is looked for."""
        text = "" if index is None else f"  {index + 1} of {total}" if total else "  no match"
        for shown in self.query("#find-count").results(Static):
            shown.update(text)
