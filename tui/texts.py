"""Files and pieces of answers: code blocks, the last command, what may be attached, what may be written; text beside a
label."""

from __future__ import annotations

import contextlib
import shlex
import socket
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rich.cells import cell_len, set_cell_size

from flashmoe import paths
from flashmoe.text_safety import encodable, visible_line

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MOST_ATTACHED = 4 << 20
"""Bytes: a larger file is no text for a context."""
_SHELLS = frozenset({"sh", "bash", "zsh", "fish", "shell", "console", "shell-session", "terminal"})


def hanging(text: str, width: int, indent: int) -> str:
    """`text` in lines of at most `width` columns, label included: the first begins after a label of `indent` columns,
    the others below it."""
    return textwrap.fill(text, max(12, width - indent)).replace("\n", "\n" + " " * indent)


def whole_words(text: str, width: int) -> str:
    """`text` in `width` columns: what is too long loses whole words, for ``…``."""
    if len(text) <= width:
        return text
    kept, _, _ = text[:width].rpartition(" ")
    return f"{kept.rstrip(' ,;:')}…"


def fitting(text: str, cells: int) -> str:
    """`text` of a person, a model or a file in one line of at most `cells` columns: cut between words where that
    leaves enough of it."""
    line = visible_line(text)
    if cell_len(line) <= cells:
        return line
    cut = set_cell_size(line, cells - 1).rstrip()
    kept, blank, _ = cut.rpartition(" ") if line[len(cut) : len(cut) + 1].strip() else (cut, " ", "")
    return f"{(kept if blank and len(kept) > len(cut) // 2 else cut).rstrip(' ,;:')}…"


def joined(parts: Sequence[str], width: int) -> str:
    """As many of the parts, the first ones first, as `width` columns have room for: whole ones."""
    text = ""
    for part in parts:
        longer = f"{text} · {part}" if text else part
        if len(longer) > width:
            break
        text = longer
    return text


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each block in order, as it is drawn: also within lists and quotes, and while it is open."""
    blocks = [token for token in markdown_parser().parse(text) if token.type in ("fence", "code_block")]
    return [((token.info.split() or [""])[0].lower(), token.content.rstrip("\n")) for token in blocks]


@lru_cache(maxsize=1)
def markdown_parser() -> MarkdownIt:
    """The one parser of answers: what it takes for code is drawn as code, and copied as code."""
    from markdown_it import MarkdownIt

    return MarkdownIt("gfm-like", {"html": False, "linkify": False, "maxNesting": 100})


def last_command(text: str) -> str | None:
    """The last command line of the last shell block, without its prompt sign."""
    for language, code in reversed(code_blocks(text)):
        if language in _SHELLS or (not language and code.lstrip().startswith("$ ")):
            lines = [line for line in code.split("\n") if line.strip() and not line.lstrip().startswith("#")]
            prompted = [line for line in lines if line.lstrip().startswith("$ ")]
            if lines:
                return (prompted or lines)[-1].strip().removeprefix("$ ")
    return None


def typed_path(text: str) -> Path:
    """A path as people type it, or as a terminal types it when a file is dropped on it: quoted, with escaped blanks, or
    as a ``file://`` address."""
    text = text.strip()
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if Path(text).expanduser().exists():  # a name may well hold a quote or a backslash
            return Path(text).expanduser()
    if text.startswith("file://"):
        host, slash, rest = text.removeprefix("file://").partition("/")
        if host.lower() in ("", "localhost", socket.gethostname().lower()):
            return Path(unquote(slash + rest))
    if "\\" in text or text[:1] in ("'", '"'):
        with contextlib.suppress(ValueError):
            words = shlex.split(text)
            if len(words) == 1:
                text = words[0]
    return Path(text).expanduser()


def path_in(text: str) -> Path | None:
    """The path that `text` is, quoted or not; None where it is other words, such as the name of a model."""
    text = text.strip()
    begins = text[1:] if text[:1] in ("'", '"') else text
    return typed_path(text) if begins.startswith(("/", "~", "./", "../", "file://")) else None


def server_in(text: str) -> str | None:
    """The server's address that `text` is, such as ``http://127.0.0.1:8080/v1``; None where it is none, or a page's."""
    text = text.strip()
    if not text.startswith(("http://", "https://")) or " " in text:
        return None
    with contextlib.suppress(ValueError):  # http://[
        parts = urlsplit(text)
        if parts.netloc and (parts.path.rstrip("/") == "" or parts.path.rstrip("/").endswith("/v1")):
            return text
    return None


def write_new(path: Path, text: str) -> None:
    """Writes a file that must not exist yet; raises OSError."""
    with path.open("x", encoding="utf-8") as file:
        file.write(encodable(text) + "\n")


def read_text_file(path: Path) -> str:
    """A text file's content. Raises ValueError with a sentence for what is missing, too large or no text."""
    shown = paths.display(path)
    try:
        if path.is_dir():
            raise ValueError(f"{shown} is a folder; name a text file.")
        if not path.is_file():
            raise ValueError(f"{shown} does not exist.")
        with path.open("rb") as file:
            data = file.read(MOST_ATTACHED + 1)
    except OSError as error:
        raise ValueError(f"{shown} can't be read: {error.strerror}.") from None
    if len(data) > MOST_ATTACHED:
        raise ValueError(f"{shown} is larger than {MOST_ATTACHED >> 20} MiB, too large for a context.")
    if b"\0" in data[:8192]:
        raise ValueError(f"{shown} is not a text file.")
    return data.decode("utf-8", "replace")
