"""Which chats have something in the folder of kept prompts, so that it goes when they are deleted.

Parts of prompts belong to whoever asks for what they begin with, so a part that another prompt goes on from stays. One
small file a chat, named by a digest of the chat's name, has a line for each of its parts and answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

_FOLDER = "chats"
_PART = re.compile(r"([0-9a-f]{32})/([0-9a-f]{32})")
_ANSWER = re.compile(r"(answers-[0-9a-f]{24})/([0-9a-f]{32})")


def _file(folder: Path, chat: str) -> Path:
    return folder / _FOLDER / hashlib.blake2b(chat.encode("utf-8", "replace"), digest_size=16).hexdigest()


def note(folder: Path, chat: str, place: str, key: str) -> None:
    """Notes that a chat has a part, or an answer, in a folder of kept prompts. `place`: the model's folder or file
    there. Raises OSError."""
    path = _file(folder, chat)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "a", encoding="ascii") as file:
        file.write(f"{place}/{key}\n")


def take(folder: Path, chats: Iterable[str]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """(model's folder, key) of the parts and (file's stem, key) of the answers that these chats have; it is forgotten
    that they have them."""
    parts: set[tuple[str, str]] = set()
    answers: set[tuple[str, str]] = set()
    for chat in chats:
        path = _file(folder, chat)
        with contextlib.suppress(OSError):
            for line in path.read_bytes().decode("ascii", "replace").splitlines():
                if found := _PART.fullmatch(line):
                    parts.add((found[1], found[2]))
                elif found := _ANSWER.fullmatch(line):
                    answers.add((found[1], found[2]))
            path.unlink()
    return parts, answers
