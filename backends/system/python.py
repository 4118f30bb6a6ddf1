"""How a process of our own is started: the one place that runs Python.

What lies in the current folder, and what the environment says about Python, is somebody else's: a ``json.py`` beside a
model must not be imported. A child finds modules where this process does, in the same order, the current folder
excepted; it works in the folder of this program, so that nothing relative to the user's can be meant.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
"""Where the package `backends` is found."""

_START = (
    "import sys, runpy; given = sys.argv.pop(1).split({sep!r}); "
    "sys.path[:] = given + [p for p in sys.path if p not in given]; "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)
_PATHS = ("FLASHMOE_HOME", "FLASHMOE_CONFIG", "FLASHMOE_MODELS")
"""Variables that hold paths, which may be relative to the user's folder."""


class Start(NamedTuple):
    """What `subprocess` needs: ``Popen(start.command, env=start.env, cwd=start.folder)``."""

    command: list[str]
    env: dict[str, str]
    folder: str


def start_python(module: str, *options: str, env: Mapping[str, str] | None = None) -> Start:
    """How to run one of our modules (``backends.engine``). `options` are Python's; `env` is added to the
    environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= env or {}
    environment["PYTHONUNBUFFERED"] = "1"
    if home := os.environ.get("PYTHONHOME"):  # where this Python's own library is
        environment["PYTHONHOME"] = home
    for name in _PATHS:
        if value := environment.get(name):
            environment[name] = str(Path(value).expanduser().absolute())
    code = _START.format(module=module, sep=os.pathsep)
    return Start([sys.executable, "-P", *options, "-c", code, _search_path()], environment, str(ROOT))


def _search_path() -> str:
    """Where this process finds modules, but for the current folder (unless that is where this program lies)."""
    here = Path.cwd() if _has_folder() else None
    found = []
    for entry in sys.path:
        path = Path(entry)
        if entry and path.is_absolute() and (path == ROOT or path != here):
            found.append(entry)
    return os.pathsep.join(dict.fromkeys([*found, str(ROOT)]))


def _has_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
