"""The questions that wait for the end of an answer, a line each, over the composer."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widget import Widget

from tui.texts import fitting


class QueueBar(Widget):
    """Shows them; the last one can be taken back."""

    DEFAULT_CSS = """
    QueueBar { height: auto; max-height: 4; padding: 0 2; display: none; color: $text-muted; }
    QueueBar.-some { display: block; }
    """

    def __init__(self) -> None:
        super().__init__(id="queue")
        self._texts: list[str] = []
        self._key = ""

    def show(self, texts: Sequence[str], key: str) -> None:
        """Shows these; `key` takes the last one back."""
        self._texts, self._key = list(texts), key
        self.set_class(bool(self._texts), "-some")
        self.refresh(layout=True)

    def render(self) -> Content:
        """``queued  And why is that?  (↑ edits it)``."""
        room = max(10, self.size.width - 26)
        hidden = max(0, len(self._texts) - 3)
        lines = [Content(f"{hidden} more queued")] if hidden else []
        for text in self._texts[hidden:]:
            edits = f"  ({self._key} edits it)" if text is self._texts[-1] and self._key else ""
            lines.append(Content.assemble(("queued  ", "bold $primary"), fitting(text, room), edits))
        return Content("\n").join(lines)
