"""What begins with an Esc: pastes between their marks, and Alt.

A paste is whole whatever it holds. Textual takes an Esc in it, as text copied from another program's colours has them,
for the end of it and the rest for keys, Enter among them.

A terminal sends the same bytes for Alt+F as for Esc and F one right after the other, and tmux holds an Esc back for
half a second to see what follows. So a piece is only what it can mean: Alt+F where that is bound, else Esc, then F.
Textual drops the Esc.
"""

from __future__ import annotations

from collections.abc import Iterable

from textual import events
from textual._xterm_parser import XTermParser
from textual.message import Message

_ESC = "\x1b"
_START, _END = "\x1b[200~", "\x1b[201~"
_BEGINS_MORE = frozenset("[O]P_^X")
"""Behind an Esc these begin a sequence: one that nobody knows isn't the key Esc."""
_NAMED = {"\r": "alt+enter", "\n": "alt+enter", "\x7f": "alt+backspace", "\x08": "alt+backspace"}


class AltKey(events.Key):
    """A key that came behind an Esc. `two`: what it is where Alt and the key mean nothing together."""

    def __init__(self, key: str, two: tuple[events.Key, ...]) -> None:
        super().__init__(key, None)
        self.two = two


class KeyParser(XTermParser):
    """Textual's, with nothing lost behind an Esc, and pastes whole."""

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._tail = ""
        """The last characters that were read: a mark may be cut."""
        self._pasted: list[str] | None = None
        """The paste that is coming; None: none is."""

    def feed(self, data: str) -> Iterable[Message]:
        """Events of what was read. Between the marks nothing is given to Textual, which would look into it."""
        while data:
            before, known = self._tail, self._tail + data
            mark = _START if self._pasted is None else _END
            at = known.find(mark)
            end = at + len(mark) - len(before) if at >= 0 else len(data)
            here, data = data[:end], data[end:]
            self._tail = known[-len(mark) + 1 :] if at < 0 else ""
            if self._pasted is None:
                yield from super().feed(here)
                if at >= 0:
                    self._pasted = []
            else:
                self._pasted.append(here)
                if at >= 0:
                    text = "".join(self._pasted)[: -len(_END)]
                    self._pasted = None
                    yield from (event for event in super().feed(_END) if not isinstance(event, events.Paste))
                    yield events.Paste(text.replace("\x00", ""))

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        behind = sequence if alt else sequence[1:] if sequence[:1] == _ESC else ""
        if len(behind) != 1 or behind in _BEGINS_MORE or behind == _ESC:
            return super()._sequence_to_key_events(sequence, alt)
        plain = tuple(super()._sequence_to_key_events(behind))
        two = (events.Key("escape", _ESC), *plain)
        if behind in _NAMED:
            return [events.Key("alt+enter", None)] if behind in "\r\n" else [AltKey(_NAMED[behind], two)]
        if not behind.isprintable() or len(plain) != 1:
            return two
        name = plain[0].key
        if behind.isupper():
            name = f"shift+{behind.lower()}"
        return [AltKey(f"alt+{name}", two)]
