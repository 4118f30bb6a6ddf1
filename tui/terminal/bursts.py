"""Keys that come together: what a terminal sends in one piece is either typed ahead or pasted without brackets.

A paste that the terminal doesn't mark (tmux without ``-p``, screen, old terminals) arrives as keys, and its line breaks
as Enter. An Enter with text before and after it in one piece is therefore a line break, and the whole piece is text;
what was typed ahead on a slow line and looks the same is put into the field rather than sent: that can be mended.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from textual import events
from textual.message import Message

GOES_ON_S = 0.3
"""A paste is still coming in for this long after its last piece."""
JUST_NOW_S = 0.06
"""Text that came this long before is the beginning of the same piece: large pastes come in several reads."""
LULL_S = 0.03
"""How long is waited for what follows an Enter that ends a piece of text."""
LONG = 64
"""Keys: a longer stretch of text in one piece goes in at once, as nobody types it that fast."""

_BREAKS = frozenset({"enter", "ctrl+j"})


class TextOfKeys(events.Paste):
    """Text that came as keys. `keys` are these, for what has the focus and isn't a field; none for several lines."""

    def __init__(self, text: str, keys: Sequence[events.Key]) -> None:
        super().__init__(text)
        self.keys = keys


class Bursts:
    """Makes of each piece that was read what it means. Times are seconds of one clock."""

    def __init__(self, leaders: frozenset[str] = frozenset()) -> None:
        """`leaders`: keys that another follows, which then is no text."""
        self._leaders = leaders
        self._led = False
        self._pasted_until = 0.0
        self._text_until = 0.0
        self._ended_in = ""

    def more_at_once(self, now: float) -> None:
        """More stood there already when the last piece was done with: it belongs to it, however long this one took on a
        busy machine."""
        if self._ended_in == "paste":
            self._pasted_until = max(self._pasted_until, now + GOES_ON_S)
        elif self._ended_in == "text":
            self._text_until = max(self._text_until, now + JUST_NOW_S)

    def unfinished(self, pieces: Sequence[Message], now: float) -> bool:
        """Whether what follows within `LULL_S` decides what the Enter at the end of `pieces` means, or is the other
        half of the last character."""
        run = _last_run(pieces)
        if run and _is_half(run):
            return True
        if not run or run[-1].key not in _BREAKS:
            return False
        return len(run) < len(pieces) or _has_text(run) or now < self._text_until

    def take(self, pieces: Iterable[Message], now: float) -> list[Message]:
        """The events of one piece, with text that was pasted as one event each."""
        taken: list[Message] = []
        run: list[events.Key] = []
        first = True
        for message in pieces:
            if isinstance(message, events.Key):
                led, self._led = self._led, message.key in self._leaders
                if not led and _is_text(message):
                    run.append(message)
                    continue
            taken += self._end(run, first, now)
            run, first = [], False
            taken.append(message)
        ended = self._end(run, first, now)
        self._ended_in = "" if not run else "paste" if now < self._pasted_until else "text"
        if run and not isinstance(ended[-1], TextOfKeys) and _has_text(run):
            self._text_until = now + JUST_NOW_S
        return taken + ended

    def _end(self, run: list[events.Key], first: bool, now: float) -> list[Message]:
        if not run:
            return []
        breaks = [index for index, key in enumerate(run) if key.key in _BREAKS]
        began = first and (now < self._text_until or now < self._pasted_until)
        last_text = max((index for index, key in enumerate(run) if key.key not in _BREAKS), default=-1)
        within = any((began or _has_text(run[:index])) and index < last_text for index in breaks)
        if within or (first and now < self._pasted_until):
            self._pasted_until = now + GOES_ON_S
            return [TextOfKeys(_text(run), [] if breaks else list(run))]
        return [message for stretch in _stretches(run) for message in stretch]


def _stretches(run: Sequence[events.Key]) -> Iterator[Sequence[Message]]:
    """The line breaks as keys, and what is between them: at once where it is long or no keys could type it."""
    for is_break, found in itertools.groupby(run, lambda key: key.key in _BREAKS):
        keys = list(found)
        at_once = not is_break and (len(keys) >= LONG or any(map(_joins, keys)))
        yield [TextOfKeys(_text(keys), keys)] if at_once else keys


def _is_text(key: events.Key) -> bool:
    return key.is_printable or key.key in _BREAKS or key.key == "tab" or _joins(key)


def _joins(key: events.Key) -> bool:
    """Whether it is a part of a character: what joins two emoji, which is no key to Textual, or half of a flag, which
    might pair with what stands behind the cursor before its other half is there."""
    character = (key.character or " ")[:1]
    return unicodedata.category(character) == "Cf" or _is_half_flag(character)


def _is_half_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_half(run: Sequence[events.Key]) -> bool:
    """Whether the last character isn't complete: it would join with what stands behind the cursor, an emoji or half of
    a flag, and the rest of it would go to the wrong place."""
    last = run[-1].character or ""
    if last == "\u200d":
        return True
    flags = itertools.takewhile(lambda key: _is_half_flag((key.character or " ")[:1]), reversed(run))
    return sum(1 for _ in flags) % 2 == 1


def _has_text(run: Iterable[events.Key]) -> bool:
    return any(key.is_printable for key in run)


def _text(run: Iterable[events.Key]) -> str:
    return "".join("\n" if key.key in _BREAKS else "\t" if key.key == "tab" else key.character or "" for key in run)


def _last_run(pieces: Sequence[Message]) -> list[events.Key]:
    run: list[events.Key] = []
    for message in reversed(pieces):
        if not isinstance(message, events.Key) or not _is_text(message):
            break
        run.append(message)
    return run[::-1]
