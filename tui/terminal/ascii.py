"""For consoles that have no box drawing: what is drawn with other than ASCII is drawn with ASCII, cell by cell.

Letters of other scripts stay as they are: what a person or a model wrote is not changed.
"""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_SAME = {
    "─━┄┅┈┉╌╍═╴╶╸╺╼╾▔‾": "-",
    "│┃┆┇┊┋╎╏║╵╷╹╻╽╿▏▎▍▌▐▕": "|",
    "┌┐└┘├┤┬┴┼╭╮╯╰╔╗╚╝╠╣╦╩╬┏┓┗┛┣┫┳┻╋╱╲╳": "+",
    "░·•∙◦⋅": ".",
    "▒▪◆◇○●■□▰": "o",
    "▱": ".",
    "▓▉▊▋█▀▄": "#",
    "▁▂": "_",
    "▃▄▅": "=",
    "▆▇": "#",
    "▸▶►→⟶›»": ">",
    "◂◀◄←‹«": "<",
    "▴▲↑⇡": "^",
    "▾▼↓⇣": "v",
    "↪↳↩": "\\",
    "✓✔": "+",
    "✗✘×": "x",
    "✎": "*",
    "≈∼": "~",
    "…": "~",
    "‥": ":",
    "–—−‐‑": "-",
    "“”„": '"',
    "‘’‚": "'",
    "µ": "u",
    "\u00a0": " ",
}
_TABLE = str.maketrans({character: ascii_ for characters, ascii_ in _SAME.items() for character in characters})
_BRAILLE = range(0x2800, 0x2900)


@lru_cache(maxsize=4096)
def in_ascii(text: str) -> str:
    """`text` with its drawing characters replaced; every character keeps its cell."""
    if text.isascii():
        return text
    drawn = text.translate(_TABLE)
    if not drawn.isascii():
        drawn = "".join(_dots(char) if ord(char) in _BRAILLE else char for char in drawn)
    return drawn if cell_len(drawn) == cell_len(text) else text


def _dots(char: str) -> str:
    """A braille cell by how many of its dots are set."""
    return " .:+*##@@"[(ord(char) - 0x2800).bit_count()]


class Ascii(LineFilter):
    """Applied to every line before it goes to the terminal."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The line in ASCII."""
        return [Segment(in_ascii(text), style, control) for text, style, control in segments]
