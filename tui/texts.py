"""Files and pieces of answers: code blocks, the last command, what may be attached, what may be written."""

from __future__ import annotations

import re
from pathlib import Path

from flashmoe import paths
from flashmoe.text_safety import encodable

MOST_ATTACHED = 4 << 20
"""Bytes: a larger file is no text for a context."""
_FENCE = re.compile(r"^(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_SHELLS = frozenset({"sh", "bash", "zsh", "fish", "shell", "console", "shell-session", "terminal"})


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of each fenced block, in order."""
    return [(match[2].lower(), match[3].rstrip("\n")) for match in _FENCE.finditer(text)]


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
    """A path as people type it."""
    return Path(text.strip()).expanduser()


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
            raise ValueError(f"There is no file {shown}.")
        with path.open("rb") as file:
            data = file.read(MOST_ATTACHED + 1)
    except OSError as error:
        raise ValueError(f"{shown} can't be read: {error.strerror}.") from None
    if len(data) > MOST_ATTACHED:
        raise ValueError(f"{shown} is larger than {MOST_ATTACHED >> 20} MiB, too large for a context.")
    if b"\0" in data[:8192]:
        raise ValueError(f"{shown} is no text file.")
    return data.decode("utf-8", "replace")
