"""What was chosen in the app and is to last: theme, set of keys, monitor, order of the lists. One file in the state
folder; the configuration file wins over it and is never written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from flashmoe import paths

_Name = Annotated[str, Meta(max_length=80)]
MOST_BYTES = 64 * 1024


class Chosen(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """The choices; None where nothing was chosen."""

    theme: _Name | None = None
    keys: _Name | None = None
    """The named set of keys."""
    monitor: bool | None = None
    """Whether the monitor is open beside the chat."""
    sort: _Name | None = None
    """The order of the models."""


def read_chosen() -> Chosen:
    """What was chosen before; a file that is broken or isn't there chooses nothing."""
    try:
        with paths.chosen_file().open("rb") as file:
            return msgspec.json.decode(file.read(MOST_BYTES), type=Chosen)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Chosen()


def choose(**choices: Any) -> bool:
    """Keeps choices for the next start, beside those of before; False where a disk is full or read-only."""
    chosen = msgspec.structs.replace(read_chosen(), **choices)
    path = paths.chosen_file()
    with contextlib.suppress(OSError, paths.PathError):
        paths.ensure_dir(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".chosen-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(chosen)) + b"\n")
            Path(name).replace(path)
        except OSError:
            Path(name).unlink()
            raise
        return True
    return False
