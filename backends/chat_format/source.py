"""The text that a model writes, as a parser reads it: it comes in pieces, and how it is cut changes nothing.

A parser is a generator that reads from a `Source` and yields whenever it needs more text than there is. Each read here
waits until what it decides can't change any more, so the same text gives the same result for every way of cutting it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
"""A read: yields while there is not enough text, returns what it read."""

SPACE = " \t\r\n"
COMPACT_FROM = 1 << 15


class Source:
    """Text with a place in it. `feed` and `end` are the writer's side, everything else the parser's."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._forgotten = 0
        self.cut_off = False
        """The end came in the middle: what may be the beginning of a marker there is none of the text."""
        self._special: dict[int, str] = {}
        self.special_texts: frozenset[str] = frozenset()
        """Texts of the vocabulary's special tokens: as a marker only the token itself counts, not its letters."""

    @property
    def at_special(self) -> bool:
        """Whether a special token stands here."""
        return self.at in self._special

    def feed(self, text: str, *, special: bool = False) -> None:
        """Adds a piece; `special`: the text of one special token."""
        if special:
            self._special[len(self.text)] = text
        self.text += text

    def end(self) -> None:
        """No more comes."""
        self.ended = True

    def compact(self) -> None:
        """Forgets what was read. Only where nothing will go back."""
        if self.at >= COMPACT_FROM:
            self._special = {k - self.at: v for k, v in self._special.items() if k >= self.at}
            self._forgotten += self.at
            self.text, self.at = self.text[self.at :], 0

    @property
    def place(self) -> int:
        """Where it stands in all the text that was ever fed."""
        return self._forgotten + self.at

    # -- reads ---------------------------------------------------------------------------------------------------------

    def genuine(self, marker: str, at: int) -> bool:
        """Whether a marker at a place is one: where it holds the text of a special token, the token must be there."""
        for special in self.special_texts:
            offset = marker.find(special)
            if offset >= 0:
                return self._special.get(at + offset) == special
        return True

    def at_end(self) -> Wait[bool]:
        """Whether nothing is left, for good."""
        while self.at >= len(self.text):
            if self.ended:
                return True
            yield
        return False

    def peek(self) -> Wait[str]:
        """The next character, '' at the end."""
        while self.at >= len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def ahead(self, n: int) -> Wait[str]:
        """Up to `n` characters, fewer only at the end."""
        while len(self.text) - self.at < n and not self.ended:
            yield
        return self.text[self.at : self.at + n]

    def stands_ahead(self, marker: str, limit: int) -> Wait[bool]:
        """Whether a marker stands within the next `limit` characters: known as soon as it comes."""
        while self.text.find(marker, self.at, self.at + limit) < 0:
            if self.ended or len(self.text) - self.at >= limit:
                return False
            yield
        return True

    def space(self) -> Wait[str]:
        """Skips white space and returns it."""
        start = self.at
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[start : self.at]
            yield

    def match(self, markers: Iterable[str]) -> Wait[str | None]:
        """The longest of some markers that stands here, read; None: none of them does."""
        ordered = [m for m in sorted(markers, key=len, reverse=True) if m]
        if not ordered:
            return None
        while True:
            rest = self.text[self.at : self.at + len(ordered[0])]
            for marker in ordered:
                if rest.startswith(marker) and self.genuine(marker, self.at):
                    self.at += len(marker)
                    return marker
                if not self.ended and len(rest) < len(marker) and marker.startswith(rest):
                    break  # a longer one is still possible
            else:
                return None
            yield

    def pieces(self, pieces: tuple[str, ...]) -> Wait[bool]:
        """Reads some pieces with white space allowed between them; False: they aren't here, and nothing was read."""
        start = self.at
        for piece in pieces:
            yield from self.space()
            if (yield from self.match((piece,))) is None:
                self.at = start
                return False
        return True

    def optional(self, pieces: tuple[str, ...]) -> Wait[bool]:
        """Reads each of some pieces if it is here, and the white space before it; whether any was."""
        found = False
        for piece in pieces:
            start = self.at
            yield from self.space()
            if (yield from self.match((piece,))) is None:
                self.at = start
            else:
                found = True
        return found

    def word(self, pattern: re.Pattern[str], limit: int) -> Wait[str]:
        """The longest run of characters that each match `pattern`, read; at most `limit`."""
        start = end = self.at
        while True:
            while end < len(self.text) and end - start < limit and pattern.match(self.text[end]):
                end += 1
            if end < len(self.text) or self.ended or end - start >= limit:
                self.at = end
                return self.text[start:end]
            yield

    def until(self, markers: tuple[str, ...], emit: Callable[[str], None]) -> Wait[str | None]:
        """Gives text to `emit` as it comes, up to the first of some markers, which is not read; None: the end came."""
        if not markers:
            markers = ("\0never",)
        found_at = _any_of(markers)
        search = self.at
        while True:
            found = found_at.search(self.text, search)
            while found and not self.genuine(found[0], found.start()):
                search = found.start() + 1
                found = found_at.search(self.text, search)
            if found and not self.ended and self._may_grow(found[0], found.start(), markers):
                search = found.start()
                if search > self.at:
                    emit(self.text[self.at : search])
                    self.at = search
                yield
                continue
            held = 0 if found or (self.ended and not self.cut_off) else self._held(markers)
            stop = found.start() if found else len(self.text) - held
            if stop > self.at:
                emit(self.text[self.at : stop])
                self.at = stop
            if found:
                return found[0]
            if self.ended:
                if held and self.text[stop].isalnum():
                    emit(self.text[stop:])
                self.at = len(self.text)
                return None
            search = max(search, self.at)
            yield

    def _may_grow(self, found: str, at: int, markers: tuple[str, ...]) -> bool:
        """Whether a marker that was found may be the beginning of a longer one, as far as the text goes."""
        rest = self.text[at:]
        return any(len(m) > len(found) and len(m) > len(rest) and m.startswith(rest) for m in markers)

    def begins_at_end(self, markers: Iterable[str]) -> bool:
        """Whether all that is left is the beginning of a marker that was cut off."""
        rest = self.text[self.at :]
        return self.ended and self.cut_off and bool(rest) and any(m.startswith(rest) for m in markers)

    def _held(self, markers: tuple[str, ...]) -> int:
        """How many characters at the end may become one of some markers."""
        return held_back(self.text[self.at :], markers)


@lru_cache(maxsize=512)
def _any_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True)))


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that is a proper start of one of `markers`."""
    longest = 0
    text = text[-max(map(len, markers)) :] if markers else ""
    for marker in markers:
        for n in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:n]):
                longest = n
                break
    return longest
