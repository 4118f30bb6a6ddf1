"""As much of a terminal as it takes to know what stands on it: positions, colours as sent, wide characters."""

from __future__ import annotations

import codecs
import re
import unicodedata

_PART = re.compile(
    r"\x1b\[(?P<codes>[0-9;?<>= ]*)(?P<end>[@-~])"  # control sequences
    r"|\x1b[P\]X^_].*?(?:\x1b\\|\x07)"  # strings: titles, the clipboard, questions to the terminal
    r"|\x1b[ -/]*[0-~]"
    r"|(?P<control>[\x00-\x1f\x7f])"
    r"|(?P<text>[^\x00-\x1f\x7f]+)",
    re.DOTALL,
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-9;?<>= ]*|[P\]X^_][^\x07]*)?$", re.DOTALL)


class Screen:
    """What has been written to a terminal of `columns` x `rows`."""

    def __init__(self, columns: int, rows: int) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._colours = ""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """Another size; what stood there is gone, as far as it is known."""
        self.columns, self.rows = columns, rows
        self.cells = [[(" ", "")] * columns for _ in range(rows)]
        self._x = self._y = 0

    def feed(self, data: bytes) -> None:
        """Takes what was written."""
        text = self._rest + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        self._rest = unfinished.group() if unfinished else ""
        for part in _PART.finditer(text[: len(text) - len(self._rest)]):
            if part["text"]:
                self._print(part["text"])
            elif part["control"]:
                if part["control"] == "\n":
                    self._y += 1
                elif part["control"] == "\r":
                    self._x = 0
            elif part["end"] == "H":
                row, column = ([*part["codes"].split(";"), "", ""])[:2]
                self._y, self._x = int(row or 1) - 1, int(column or 1) - 1
            elif part["end"] == "m":
                self._paint(part["codes"])
            elif part["codes"] == "?1049" and part["end"] in ("h", "l"):
                self.resize(self.columns, self.rows)

    def _paint(self, codes: str) -> None:
        kept = codes.split(";")
        reset = kept[0] in ("", "0")
        added = ";".join(kept[1:] if reset else kept)
        self._colours = added if reset else ";".join(filter(None, (self._colours, added)))

    def _print(self, text: str) -> None:
        for char in text:
            if unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Mn", "Me"):
                continue
            wide = unicodedata.east_asian_width(char) in "WF"
            for cell in (char, "") if wide else (char,):
                if 0 <= self._y < self.rows and self._x < self.columns:
                    self.cells[self._y][self._x] = (cell, self._colours)
                self._x += 1

    def text(self) -> str:
        """What stands there, a line for each row."""
        return "\n".join("".join(char for char, _ in row).rstrip() for row in self.cells)
