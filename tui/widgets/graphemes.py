"""Where one character, as people count them, ends and the next begins: an emoji with its skin tone, a flag."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from functools import lru_cache

from rich.cells import cell_len, split_graphemes

_LETTER_A, _LETTER_Z = "\U0001f1e6", "\U0001f1ff"
"""Regional indicators: two of them are one flag."""


@lru_cache(256)
def boundaries(text: str) -> tuple[int, ...]:
    """Indices between the characters of a line, 0 and its length among them."""
    spans, _ = split_graphemes(text)
    found = [0]
    half = False
    for start, end, _width in spans:
        flag = _LETTER_A <= text[start] <= _LETTER_Z
        if flag and half:
            found[-1] = end
            half = False
            continue
        found.append(end)
        half = flag
    return tuple(found)


def before(text: str, index: int) -> int:
    """The index one character to the left of `index` in a line; 0 at its beginning."""
    if text.isascii():
        return max(0, index - 1)
    marks = boundaries(text)
    return marks[max(0, bisect_left(marks, index) - 1)]


def after(text: str, index: int) -> int:
    """The index one character to the right; the line's length at its end."""
    if text.isascii():
        return min(len(text), index + 1)
    marks = boundaries(text)
    return marks[min(len(marks) - 1, bisect_right(marks, index))]


def snapped(text: str, index: int) -> int:
    """`index`, or the beginning of the character that it lies within."""
    if text.isascii():
        return index
    marks = boundaries(text)
    return index if index > len(text) else marks[bisect_right(marks, index) - 1]


def at_cell(text: str, cell: int, tab: int) -> int:
    """The index of the character that covers a cell (0 is the first), or the length of `text` behind its end. `tab` is
    the distance of tab stops."""
    if text.isascii() and "\t" not in text:
        return min(cell, len(text))
    marks, width = boundaries(text), 0
    for start, end in itertools.pairwise(marks):
        character = text[start:end]
        width += tab - width % tab if character == "\t" else cell_len(character)
        if width > cell:
            return start
    return len(text)
