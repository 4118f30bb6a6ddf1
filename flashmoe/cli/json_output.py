"""Results as JSON on stdout, safe on a terminal too."""

from __future__ import annotations

import json
import math
import sys
from typing import Any, TextIO


def print_json(value: object, stream: TextIO | None = None) -> None:
    """Prints one JSON object (structs, paths and dataclasses too), indented."""
    stream = stream or sys.stdout
    stream.write(json_text(value, indent=2, ascii_only=stream.isatty()) + "\n")


def print_json_line(value: object) -> None:
    """Prints one JSON line and flushes, for streams of events."""
    sys.stdout.write(json_text(value, ascii_only=sys.stdout.isatty()) + "\n")
    sys.stdout.flush()


def json_text(value: object, *, indent: int = 0, ascii_only: bool = False) -> str:
    """`value` as JSON. `ascii_only` (a terminal) escapes everything else, DEL too: what a model or a file is called
    must not be executed. A byte that isn't UTF-8, as a file's name may hold, is always escaped: ``\\udcff``.
    """
    import msgspec

    if not ascii_only:
        try:
            data = msgspec.json.encode(value, enc_hook=str)
            return (msgspec.json.format(data, indent=indent) if indent else data).decode()
        except UnicodeEncodeError:
            pass
    plain = _finite(msgspec.to_builtins(value, enc_hook=str))
    separators = None if indent else (",", ":")
    return json.dumps(plain, indent=indent or None, separators=separators).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    """Plain data with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
