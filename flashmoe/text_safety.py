"""The one place where text from models, files and servers becomes safe to show in a terminal.

Such text may hold escape sequences (which set titles, write the clipboard or answer as if the user had typed), bidi
controls (which make text read as something else) and lone surrogates (which can't be encoded at all). They are shown
as visible pictures, never executed and never dropped without a trace.
"""

from __future__ import annotations

import re

# C0 but tab and newline, DEL, C1; line and paragraph separators (terminals break lines there); bidi embeddings,
# overrides and isolates (the harmless marks stay); interlinear and tag characters (invisible text); lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u2028\u2029\u202a-\u202e\u2066-\u2069\u206a-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINE_ENDINGS = re.compile("\r\n")


def _picture(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)  # U+2400 SYMBOL FOR NULL and on: ESC is shown as ␛
    if code == 0x7F:
        return "\u2421"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"<U+{code:04X}>"


def visible(text: str) -> str:
    """`text` with every control shown instead of executed. Tabs and newlines stay; CR LF becomes a newline.

    A lone carriage return is shown too: it would let later text overwrite what was printed before. Works piece by
    piece on a stream, except that a CR LF cut in two shows its CR: `SafeStream` joins those.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(_picture, _LINE_ENDINGS.sub("\n", text))


def visible_line(text: str, limit: int | None = None) -> str:
    """`visible` for a place of one line (a title, a file name): newlines and tabs become spaces, cut to `limit`."""
    line = visible(" ".join(text.split()) if not text.isprintable() else text)
    if limit is not None and len(line) > limit:
        return line[: max(limit - 1, 0)] + "…"
    return line


def encodable(text: str) -> str:
    """`text` without lone surrogates, so that UTF-8 can hold it (files, JSON, SQLite)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class SafeStream:
    """`visible` over a stream of pieces: holds a CR back until it is known whether an LF follows."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The next piece, safe to print."""
        text = self._held + text
        self._held = ""
        if text.endswith("\r"):
            text, self._held = text[:-1], "\r"
        return visible(text)

    def end(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return visible(held)
