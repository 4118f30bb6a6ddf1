"""The prompts of before: walked with Up and Down, or searched backwards as they are typed."""

from __future__ import annotations

HISTORY_LENGTH = 200


class PromptHistory:
    """Prompts, oldest first, with the place of who walks them."""

    def __init__(self) -> None:
        self._prompts: list[str] = []
        self._position: int | None = None
        self._draft = ""
        self.query: str | None = None
        """What is searched for; None: nothing is."""

    def __bool__(self) -> bool:
        return bool(self._prompts)

    @property
    def walking(self) -> bool:
        """Whether an earlier prompt stands in the composer."""
        return self._position is not None

    def remember(self, text: str) -> None:
        """Adds a prompt, newest last, without repeats in a row."""
        if text.strip() and (not self._prompts or self._prompts[-1] != text):
            self._prompts.append(text)
            del self._prompts[:-HISTORY_LENGTH]
        self.leave()

    def remember_all(self, texts: list[str]) -> None:
        """The prompts of earlier chats, oldest first."""
        self._prompts = [text for text in texts if text.strip()][-HISTORY_LENGTH:] + self._prompts
        del self._prompts[:-HISTORY_LENGTH]

    def leave(self) -> None:
        """What stands in the composer is no earlier prompt any more."""
        self._position = self.query = None

    def step(self, step: int, current: str) -> str | None:
        """The prompt `step` away, behind the newest what was typed before (`current`); None where there is none."""
        if not self._prompts or (step > 0 and self._position is None):
            return None
        if self._position is None:
            self._draft, self._position = current, len(self._prompts)
        position = self._position + step
        if position < 0:
            return None
        if position >= len(self._prompts):
            self._position = None
            return self._draft
        self._position = position
        return self._prompts[position]

    # ---- searching -------------------------------------------------------------------------------------------------

    def begin_search(self, current: str) -> None:
        """Searches from the newest on; `current` comes back if that is given up."""
        self._draft, self._position, self.query = current, len(self._prompts), ""

    def search(self, query: str, *, older: bool = False) -> str | None:
        """The newest prompt that holds `query`, at or (`older`) before the one that is shown; None if there is none."""
        self.query = query
        start = self._position if self._position is not None else len(self._prompts)
        start = start - 1 if older else min(start, len(self._prompts) - 1)
        if not query:
            return self._draft
        for index in range(start, -1, -1):
            if query.lower() in self._prompts[index].lower():
                self._position = index
                return self._prompts[index]
        return None

    def restart_search(self) -> None:
        """A shorter query may be in newer prompts."""
        self._position = len(self._prompts)

    def give_up(self) -> str:
        """Ends the search; what was typed before."""
        self.leave()
        return self._draft
