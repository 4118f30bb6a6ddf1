"""Scrolls the chat to a match within a message."""

from __future__ import annotations

from textual.geometry import Region

from tui.chat.conversation import Turn
from tui.widgets.transcript.transcript import Transcript


def scroll_to_match(transcript: Transcript, turn: Turn, text: str, which: int) -> None:
    """To the line of match number `which` of an answer, where it is drawn; a question is short enough to be seen."""
    from tui.widgets.transcript.safe_markdown import SafeMarkdown  # 50 ms that the first paint doesn't wait for

    view, wanted = transcript.view(turn), text.casefold()
    markdown = next(iter(view.query(SafeMarkdown)), None) if view is not None and wanted else None
    if view is None or markdown is None:
        return
    rows = [y for y, line in enumerate(markdown.lines) for _ in range(line.plain.casefold().count(wanted))]
    if rows:
        top = view.virtual_region.y + markdown.virtual_region.y + rows[min(which, len(rows) - 1)]
        transcript.scroll_to_region(Region(0, top, 1, 1), center=True, animate=False)
