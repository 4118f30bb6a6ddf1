"""What was cut with ^K, ^U and ^W in any text field, to be put back with ^Y in any other; and where words end."""

from __future__ import annotations

import re

_WORD = re.compile(r"\S+\s*$")
_WORD_OF_LETTERS = re.compile(r"\w+\W*$")
_WORD_AHEAD = re.compile(r"\W*\w+")


def shell_word_before(text: str) -> int:
    """Where the word before the end of `text` begins, as ^W of a shell sees it: words are parted by blanks."""
    found = _WORD.search(text)
    return found.start() if found else 0


def word_before(text: str) -> int:
    """Where the word before the end of `text` begins; words are letters and digits."""
    found = _WORD_OF_LETTERS.search(text)
    return found.start() if found else 0


def word_after(text: str) -> int:
    """Where the word at or after the beginning of `text` ends."""
    found = _WORD_AHEAD.match(text)
    return found.end() if found else len(text)


class KillRing:
    """The text that was cut last. Cuts by one key after the other are put back as one, as in a shell."""

    def __init__(self) -> None:
        self.text = ""
        self._key = -1

    def cut(self, text: str, *, backwards: bool, key: int) -> None:
        """`text` was cut from before the cursor (`backwards`) or from behind it. `key` is the number of the key that
        did it: the one after the key of the last cut belongs to it, any key or click between them parts them."""
        if text:
            if key != self._key + 1:
                self.text = text
            else:
                self.text = text + self.text if backwards else self.text + text
        self._key = key


KILLED = KillRing()
"""Of all fields of this app."""
