"""The one place where text from models, files and servers becomes safe to show in a terminal.

Such text may hold escape sequences (which set titles, write the clipboard or answer as if the user had typed), bidi
controls (which make text read as something else), lone surrogates (which can't be encoded at all), hundreds of marks on
one letter (which run over the lines around it) and characters that nobody sees. They are shown as visible pictures,
never executed and never dropped without a trace.

`visible` is for prose; `visible_exact` for what is acted on as it stands (commands, arguments, code), where a character
that nobody sees deceives; `visible_line` for names and whatever else has one line.
"""

from __future__ import annotations

import re
import unicodedata

# C0 but tab and newline, DEL, C1; line and paragraph separators (terminals break lines there); bidi embeddings,
# overrides and isolates (the harmless marks stay); interlinear and tag characters (invisible text); lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u2028\u2029\u202a-\u202e\u2066-\u2069\u206a-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINE_ENDINGS = re.compile("\r\n")
# Colours and whatever else programs write to a terminal, as it is copied along with their text.
_SEQUENCES = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\\\)|\x1b[ -/]*[0-Z`-~]"
)

# Soft hyphen, joiners, direction marks, fillers, variation selectors, music and shorthand controls, the blank of
# braille: nothing is drawn for them, or a blank.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0100-\U000e01ef]"
)
_ODD_BLANKS = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_JOINERS = "\u200c\u200d"
_SELECTORS = ("\ufe0e", "\ufe0f")
_EMOJI_PARTS = ("\u200d", *_SELECTORS)
_LETTERS = frozenset({"Lo", "Mn", "Mc"})
"""Categories of the letters of scripts that join, and of their marks."""

MARKS_A_LETTER = 6
"""So many marks or characters without a width may follow a letter; a script that needs more isn't known."""
MORE_MARKS = "<more marks>"
_UNADVANCING = frozenset({"Mn", "Me", "Cf"})
# Marks are no letters for `\w`: only runs of these are looked at one by one.
_LONG_RUN = re.compile(rf"[^\w\s\x00-\x7f]{{{MARKS_A_LETTER + 1},}}")


def _picture(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # U+2400 SYMBOL FOR NULL and on: ESC is shown as ␛
    if code == 0x7F:
        return "\u2421"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # a byte of a file name that isn't UTF-8
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"<U+{code:04X}>"


def _thinned(match: re.Match[str]) -> str:
    return _bounded(match.group(), 0)[0]


def _bounded(text: str, before: int) -> tuple[str, int]:
    """`text` with at most `MARKS_A_LETTER` characters in a row that don't move the cursor, and how many it ends with;
    `before` came right before it."""
    out: list[str] = []
    run = before
    for char in text:
        if unicodedata.category(char) in _UNADVANCING:
            run += 1
            if run > MARKS_A_LETTER:
                if run == MARKS_A_LETTER + 1:
                    out.append(MORE_MARKS)
                continue
        else:
            run = 0
        out.append(char)
    return "".join(out), run


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def visible(text: str) -> str:
    """`text` with every control shown instead of executed. Tabs and newlines stay; CR LF becomes a newline.

    A lone carriage return is shown too: it would let later text overwrite what was printed before. Marks are bounded to
    a few a letter. Works piece by piece on a stream, except where a CR LF or a run of marks is cut in two: `SafeStream`
    joins those.
    """
    if _plain(text):
        return text
    text = _UNSAFE.sub(_picture, _LINE_ENDINGS.sub("\n", text))
    return text if text.isascii() else _LONG_RUN.sub(_thinned, text)


def visible_exact(text: str) -> str:
    """`visible`, with the characters shown that nobody sees and the blanks that are no space.

    Joiners stay where writing needs them: inside an emoji, and between letters of scripts that join (Persian, Hindi).
    """
    if _plain(text):
        return text
    text = visible(text)
    return text if text.isascii() else _ODD_BLANKS.sub(_picture, _INVISIBLE.sub(_unless_needed, text))


def visible_line(text: str, limit: int | None = None) -> str:
    """`visible_exact` for a place of one line (a title, a file name): blanks of all kinds and newlines become spaces,
    cut to `limit`."""
    line = visible_exact(" ".join(text.split()) if not text.isprintable() else text)
    if limit is not None and len(line) > limit:
        return line[: max(limit - 1, 0)] + "…"
    return line


def _unless_needed(match: re.Match[str]) -> str:
    char, text, at = match.group(), match.string, match.start()
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if char in _EMOJI_PARTS:
        base = text[at - 2 : at - 1] if before in _SELECTORS and char not in _SELECTORS else before
        if base and not base.isascii() and unicodedata.category(base)[0] in "SP":
            return char
        if after == "\u20e3":  # a keycap: digit, selector, key
            return char
    if char in _JOINERS and before and after:
        kinds = {unicodedata.category(before), unicodedata.category(after)}
        if kinds <= _LETTERS and not _INVISIBLE.match(before) and not _INVISIBLE.match(after):
            return char
    return _picture(match)


def encodable(text: str) -> str:
    """`text` without lone surrogates, so that UTF-8 can hold it (files, JSON, SQLite)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def typeable(text: str) -> str:
    """`text` for a field that people type in: line breaks of one kind, without escape sequences and controls. A field
    draws what it holds, so they would reach the terminal."""
    text = encodable(text)
    if _plain(text):
        return text
    return _UNSAFE.sub("", _SEQUENCES.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


class SafeStream:
    """`visible` over a stream of pieces: holds a CR back until it is known whether an LF follows, and counts marks on
    over the pieces."""

    def __init__(self) -> None:
        self._held = ""
        self._marks = 0

    def feed(self, text: str) -> str:
        """The next piece, safe to print."""
        text = self._held + text
        self._held = ""
        if text.endswith("\r"):
            text, self._held = text[:-1], "\r"
        if not text:
            return ""
        if text.isascii():
            self._marks = 0
            return visible(text)
        text, self._marks = _bounded(text, self._marks)
        return visible(text)

    def end(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return visible(held)
