"""Scrolls the chat to a match within a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from textual.content import Content
from textual.widgets import Static

from tui.chat.conversation import Turn
from tui.widgets.transcript.message_view import MessageView
from tui.widgets.transcript.transcript import Transcript


class Hit(NamedTuple):
    """A match: the message, whether in its thinking, and which of those there."""

    turn: Turn
    thinking: bool
    which: int


_TRIES = 6
"""Messages that were brought in for it may still move after a refresh or two."""


def scroll_to_match(
    transcript: Transcript, hit: Hit, text: str, wanted_still: Callable[[], bool], tries: int = _TRIES
) -> None:
    """To the line in which it is drawn, as long as it is still wanted."""
    view, wanted = transcript.view(hit.turn), text.casefold()
    if view is None or not wanted or not wanted_still():
        return
    rows = list(_rows(view, wanted, thinking=hit.thinking))
    if rows:
        top = view.virtual_region.y + rows[min(hit.which, len(rows) - 1)]
        transcript.release_anchor()
        # To a place, and now: a step from where the chat is would be added to those that typed letters left behind.
        transcript.scroll_to(y=max(0, top - transcript.size.height // 2), animate=False, immediate=True)
    if tries:
        transcript.call_after_refresh(scroll_to_match, transcript, hit, text, wanted_still, tries - 1)


def _rows(view: MessageView, wanted: str, *, thinking: bool) -> Iterator[int]:
    """The line of the view of each match."""
    from tui.widgets.transcript.safe_markdown import SafeMarkdown  # 50 ms that the first paint doesn't wait for

    markdown = None if thinking else next(iter(view.query(SafeMarkdown)), None)
    if markdown is not None:
        top, lines = markdown.virtual_region.y, [line.plain for line in markdown.lines]
    else:
        static = next(iter(view.query(Static)), None)  # a question, or the thinking: the first there is
        content = static.content if static is not None else ""
        if static is None or not isinstance(content, Content):
            return
        top, lines = static.virtual_region.y, [line.plain for line in content.wrap(max(1, static.size.width))]
        if not thinking:  # of the heading nothing was counted
            top, lines = top + 1, lines[1:]
    for y, line in enumerate(lines):
        for _ in range(line.casefold().count(wanted)):
            yield top + y
