"""Find in the shown chat: where matches are, which is shown, and that they are lit."""

from __future__ import annotations

from flashmoe.text_safety import visible
from tui.screens.chat.parts import ChatParts
from tui.widgets.find_bar import FindBar
from tui.widgets.transcript.lit import light
from tui.widgets.transcript.matches import Hit, scroll_to_match
from tui.widgets.transcript.transcript import Transcript

MOST_HITS = 10_000


class Finding:
    """Walks the matches of a text in the questions and answers that are shown."""

    def __init__(self, parts: ChatParts) -> None:
        self._parts = parts
        self._text = ""
        self._hits: list[Hit] = []
        self._index = 0

    async def open(self) -> None:
        """Shows the bar."""
        if not self._parts.flow.conversation.turns:
            self._parts.say("There is nothing in this chat yet.", "warning")
            return
        await self._parts.find_bar.open()

    async def seek(self, text: str) -> None:
        """Looks for `text` from now on and shows the newest match."""
        self._text = text
        self._look()
        self._index = max(0, len(self._hits) - 1)
        light(self._parts.transcript, text)
        await self._show()

    def _look(self) -> None:
        wanted, self._hits = self._text.casefold(), []
        for turn in self._parts.flow.conversation.turns if wanted else []:
            for thinking in (True, False):
                text = turn.thinking if thinking else turn.content
                n = visible(text).casefold().count(wanted)
                self._hits += [Hit(turn, thinking, which) for which in range(n)]
            if len(self._hits) > MOST_HITS:
                break

    async def step(self, step: int) -> None:
        """The next match, or the previous one; behind the last comes the first."""
        here = self._here
        self._look()  # an answer may have grown
        if not self._hits:
            await self._show()
            return
        self._index = self._hits.index(here) if here in self._hits else 0
        self._index = (self._index + step) % len(self._hits)
        await self._show()

    async def _show(self) -> None:
        bar: FindBar = self._parts.find_bar
        bar.count(self._index if self._text else None, len(self._hits))
        if self._hits:
            hit = self._hits[self._index]
            transcript: Transcript = self._parts.transcript
            await transcript.reveal(hit.turn.id)
            view = transcript.view(hit.turn)
            if view is not None:
                view.unfold(thinking=hit.thinking)
            transcript.call_after_refresh(scroll_to_match, transcript, hit, self._text, lambda: self._here is hit)

    @property
    def _here(self) -> Hit | None:
        """The match that is shown."""
        return self._hits[self._index] if self._hits else None

    def close(self) -> None:
        """Ends it; the reader stays where they are."""
        self._text, self._hits = "", []
        self._parts.find_bar.close()
        light(self._parts.transcript, "")
        self._parts.transcript.unmark()
        self._parts.composer.focus()
