"""Labelled lines that fit the terminal: what goes over the end goes on below the text, not below the label."""

from __future__ import annotations

import shutil
import textwrap

from flashmoe.cli.common import out

WIDEST = 100


def width() -> int:
    """Columns to write in: the terminal's (or COLUMNS), at most 100; 100 in a pipe."""
    return min(WIDEST, max(40, shutil.get_terminal_size((WIDEST, 24)).columns))


def labelled(label: str, text: str) -> None:
    """Prints `label`, which brings its own padding, and `text` beside it, broken at the terminal's width."""
    columns = width()
    hang = " " * (len(label) if len(label) <= columns // 2 else 6)
    out(
        textwrap.fill(
            text, columns, initial_indent=label, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
        )
        if text
        else label.rstrip()
    )
