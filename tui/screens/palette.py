"""The command palette: every action that can be taken now, by what it does, with its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from textual.app import SystemCommand

from tui.key_table import KEYS
from tui.keymap import Keymap

_HIDDEN = frozenset({"app.palette", "app.interrupt"})


def palette_commands(keymap: Keymap, scopes: frozenset[str], run: Callable[[str], Any]) -> Iterator[SystemCommand]:
    """A command for each key of these scopes; `run` makes of an action what carries it out."""
    for spec in KEYS:
        if spec.scope in scopes and spec.id not in _HIDDEN:
            title, detail = _title_and_detail(spec.description)
            shown = keymap.display(spec.id)
            yield SystemCommand(title, f"{shown}   {detail}" if shown else detail, run(spec.action))


def _title_and_detail(description: str) -> tuple[str, str]:
    """Splits ``Chats: list, search`` and ``Answer again; the old one stays`` where the explanation begins."""
    for sign in (": ", "; ", " ("):
        title, found, detail = description.partition(sign)
        if found:
            return title, detail.rstrip(")").capitalize() if sign != ": " else detail
    return description, ""
