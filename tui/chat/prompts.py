"""Prompts of one's own: text files in a folder, each a / command. ``{{input}}`` stands for what is typed behind it, and
so does the first ``{{word}}`` where there is none; any other ``{{word}}`` is asked for."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from flashmoe import paths
from flashmoe.text_safety import encodable

MOST_FILES = 500
MOST_BYTES = 256 * 1024
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}\Z")
_PLACE = re.compile(r"\{\{\s*([A-Za-z][\w -]{0,39}?)\s*\}\}")
INPUT = "input"


class OwnPrompt(NamedTuple):
    """One file."""

    name: str
    """Its name without the ending, as typed behind the slash."""
    text: str

    @property
    def first_line(self) -> str:
        """What it is about, for lists."""
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")

    @property
    def places(self) -> list[str]:
        """The names of its placeholders, each once, in order."""
        return list(dict.fromkeys(match[1] for match in _PLACE.finditer(self.text)))

    def filled(self, values: dict[str, str]) -> str:
        """The text with its placeholders filled; what is typed behind a prompt without any follows it."""
        text = _PLACE.sub(lambda match: values.get(match[1], match[0]), self.text)
        rest = values.get(INPUT, "") if INPUT not in self.places else ""
        return f"{text.rstrip()}\n\n{rest}" if rest else text.rstrip("\n")


def prompts_dir() -> Path:
    """The folder."""
    return paths.config_dir() / "prompts"


def read_prompts(taken: frozenset[str]) -> list[OwnPrompt]:
    """The prompts by name; a file whose name is `taken` by a command, or that can't be read, is left out."""
    found: list[OwnPrompt] = []
    with contextlib.suppress(OSError):
        for path in sorted(prompts_dir().iterdir())[:MOST_FILES]:
            name = path.stem.lower()
            if path.suffix not in (".txt", ".md") or not _NAME.match(name) or name in taken:
                continue
            with contextlib.suppress(OSError), path.open("rb") as file:
                text = encodable(file.read(MOST_BYTES).decode("utf-8", "replace"))
                if text.strip():
                    found.append(OwnPrompt(name, text))
    return found
