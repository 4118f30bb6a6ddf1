"""A plain model of an editor, to compare the real fields with, and random keys for both."""

from __future__ import annotations

import random

LEFT, RIGHT, UP, DOWN = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B"
HOME, END, DELETE, BACKSPACE, ENTER = "\x1b[H", "\x1b[F", "\x1b[3~", "\x7f", "\r"
A, E, J, K, U, W, Y = "\x01", "\x05", "\n", "\x0b", "\x15", "\x17", "\x19"
PASTE, PASTED = "\x1b[200~", "\x1b[201~"

WIDE = ["漢", "👍🏽", "🇩🇪", "🇫🇷", "👨‍👩‍👧", "❤️"]
"""Of two cells each."""
LETTERS = [*"abcdefghij XYZ.,-1", " ", " ", "ä", "é", "e\u0301", *WIDE]
_LONGEST_FIRST = sorted(LETTERS, key=len, reverse=True)
EDITING = [LEFT, LEFT, RIGHT, HOME, END, A, E, BACKSPACE, BACKSPACE, DELETE, K, U, W, Y]


def characters(text: str) -> list[str]:
    """A text of the alphabet above, character by character."""
    found: list[str] = []
    while text:
        whole = next((letter for letter in _LONGEST_FIRST if text.startswith(letter)), text[0])
        found.append(whole)
        text = text[len(whole) :]
    return found


class Editor:
    """What stands left and right of the cursor, character by character."""

    def __init__(self, *, cut: str = "", one_line: bool = False) -> None:
        self.left: list[str] = []
        self.right: list[str] = []
        self.cut = cut
        self._one_line = one_line
        self._cutting = False
        self._goal = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.left + self.right)

    @property
    def widest(self) -> int:
        """Cells of the widest line."""
        return max(map(_cells, _lines(self.left + self.right)))

    def copy(self) -> Editor:
        """Another one in the same state."""
        other = Editor(cut=self.cut, one_line=self._one_line)
        other.left, other.right = self.left.copy(), self.right.copy()
        other._cutting, other._goal = self._cutting, self._goal
        return other

    def press(self, key: str) -> None:
        """Any of the keys above, a letter, or a paste."""
        cutting, self._cutting = self._cutting, False
        if key in (UP, DOWN):
            self._to_line(-1 if key == UP else 1)
            return
        if key in (K, U, W):
            self._kill(key, cutting)
            self._cutting = True
        elif key == Y and not self.cut:
            return
        else:
            self._move_or_type(key)
        self._goal = _cells(_lines(self.left)[-1])

    def _move_or_type(self, key: str) -> None:
        left, right = self.left, self.right
        if key == LEFT:
            right[:0] = [left.pop()] if left else []
        elif key == RIGHT:
            left += [right.pop(0)] if right else []
        elif key in (HOME, A):
            while left and left[-1] != "\n":
                right.insert(0, left.pop())
        elif key in (END, E):
            while right and right[0] != "\n":
                left.append(right.pop(0))
        elif key == BACKSPACE:
            del left[-1:]
        elif key == DELETE:
            del right[:1]
        elif key == Y:
            left += characters(self.cut)
        else:
            text = key.removeprefix(PASTE).removesuffix(PASTED).replace("\r\n", "\n").replace("\r", "\n")
            if self._one_line and "\n" in text:
                text = " ".join(line.strip() for line in text.split("\n") if line.strip())
            left += characters(text)

    def _kill(self, key: str, cutting: bool) -> None:
        left, right = self.left, self.right
        if key == K:
            stop = right.index("\n") if "\n" in right else len(right)
            stop = stop or min(1, len(right))
            text, self.right = "".join(right[:stop]), right[stop:]
            self._keep(self.cut + text if cutting else text, text)
            return
        start = len(left)
        if start and left[-1] == "\n":
            start -= 1
        elif key == U:
            while start and left[start - 1] != "\n":
                start -= 1
        else:
            while start and left[start - 1] == " ":
                start -= 1
            while start and left[start - 1] not in " \n":
                start -= 1
        text, self.left = "".join(left[start:]), left[:start]
        self._keep(text + self.cut if cutting else text, text)

    def _keep(self, together: str, text: str) -> None:
        if text:
            self.cut = together

    def _to_line(self, step: int) -> None:
        before, lines = len(_lines(self.left)) - 1, _lines(self.left + self.right)
        there = before + step
        if there < 0:
            column, there = 0, 0
        elif there >= len(lines):
            there = len(lines) - 1
            column = len(lines[there])
        else:
            column, goal = 0, max(self._goal, _cells(_lines(self.left)[-1]))
            while column < len(lines[there]) and _cells(lines[there][: column + 1]) <= goal:
                column += 1
        every = self.left + self.right
        index = sum(len(line) + 1 for line in lines[:there]) + column
        self.left, self.right = every[:index], every[index:]


def _lines(chars: list[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for char in chars:
        if char == "\n":
            found.append([])
        else:
            found[-1].append(char)
    return found


def _cells(chars: list[str]) -> int:
    return sum(2 if char in WIDE else 1 for char in chars)


def press_some(draw: random.Random, n: int, editor: Editor, *, widest: int, lines: bool, up_down: bool) -> list[str]:
    """`n` keys, pressed in `editor` as well; none that makes a line wider than `widest` cells.

    `lines`: several lines may be typed; Enter comes within text only. `up_down`: arrows between lines too.
    """
    editing = [*EDITING, *([J] if lines else []), *([UP, DOWN] if up_down else [])]
    keys: list[str] = []
    while len(keys) < n:
        kind = draw.random()
        if kind < 0.64:
            key = draw.choice(LETTERS)
        elif kind < 0.95:
            key = draw.choice(editing)
        elif kind < 0.98 and lines:
            key = draw.choice("abc") + ENTER + draw.choice("abc")
        else:
            pasted = [draw.choice([*LETTERS, "\r", "\n", "\r\n"]) for _ in range(draw.randint(1, 12))]
            key = PASTE + "".join(pasted) + PASTED
        before = editor.copy()
        editor.press(key)
        if editor.widest > widest:
            editor.__dict__.update(before.__dict__)
            key = U
            editor.press(key)
        keys.append(key)
    return keys


def pieces(draw: random.Random, keys: list[str]) -> list[bytes]:
    """The keys as a bad line may deliver them: cut within escape sequences and characters, never beside an Enter."""
    found = [b""]
    for key in keys:
        data = key.encode()
        may_cut = len(data) > 1 and (ENTER not in key or key.startswith(PASTE))
        cut = draw.randrange(1, len(data)) if may_cut and draw.random() < 0.3 else 0
        if cut:
            found[-1] += data[:cut]
            found.append(data[cut:])
        else:
            found[-1] += data
    return found
