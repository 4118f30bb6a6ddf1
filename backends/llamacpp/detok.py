"""From a stream of token bytes to a stream of text: whole characters only, stop strings held back."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Decodes bytes that are cut anywhere; invalid ones become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Text that is complete now."""
        return self._decoder.decode(data)

    @property
    def held(self) -> bool:
        """Whether a character has come in part."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left at the end: '' or U+FFFD for a cut character."""
        return self._decoder.decode(b"", True)


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that is a proper start of one of `markers`."""
    longest = 0
    for marker in markers:
        for n in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:n]):
                longest = n
                break
    return longest


class StopStrings:
    """Ends an answer before the first of some strings, also where tokens cut the string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(s for s in stops if s)
        self._held = ""
        self.stopped = False
        self.stopped_by: str | None = None
        """The string that was found."""

    def feed(self, text: str) -> str:
        """Text that can't be part of a stop string; sets `stopped` once one was found and gives what came before it."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at, s) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            at, self.stopped_by = min(found)
            self.stopped, self._held = True, ""
            return text[:at]
        keep = held_back(text, self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        text, self._held = self._held, ""
        return text
