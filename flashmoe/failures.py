"""Exceptions that nobody expected, as one line for a screen and a traceback in the log folder."""

from __future__ import annotations

import time
import traceback
from pathlib import Path

from backends.errors import ReportedError
from backends.system.private import opener
from flashmoe import paths
from flashmoe.text_safety import visible_line

MOST_CHARS = 300
"""Of a line: what an exception says may quote a whole file."""


def told(failure: BaseException) -> str:
    """What happened: the project's own errors say it themselves, others by their kind."""
    if isinstance(failure, ReportedError):
        return visible_line(failure.message, MOST_CHARS)
    if isinstance(failure, OSError) and failure.strerror:
        name = f"{paths.display(str(failure.filename))}: " if failure.filename else ""
        return visible_line(f"{name}{failure.strerror}.", MOST_CHARS)
    return visible_line(f"unexpected error ({type(failure).__name__}: {failure}).", MOST_CHARS)


def keep(failure: BaseException) -> Path | None:
    """Writes the traceback to the log folder; the file, None where it couldn't be written."""
    path = paths.log_file("errors.log")
    try:
        with open(path, "a", encoding="utf-8", errors="replace", opener=opener) as log:
            log.write(time.strftime("\n%Y-%m-%dT%H:%M:%S\n"))
            log.writelines(traceback.format_exception(failure))
    except OSError:
        return None
    return path


def kept(failure: BaseException) -> str:
    """`keep`, as a sentence on where to find it."""
    path = keep(failure)
    if path is None:
        return "Run it again with FLASHMOE_DEBUG=1 to see where."
    return f"Details for a bug report are in {paths.display(path)}."
