"""The software: versions, llama.cpp's build, folders, configuration, history and the terminal."""

from __future__ import annotations

import json
import locale
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from backends.system.python import start_python
from flashmoe import paths
from flashmoe.doctor.disk import existing

PACKAGES = ("flashmoe-tui", "llama-cpp-python", "textual", "huggingface_hub", "msgspec", "numpy")
INSPECT_TIMEOUT_S = 90.0
SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PROXY")


def versions() -> dict[str, str]:
    """Installed versions."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def llama() -> dict[str, Any]:
    """What `backends.inspection` says in a process of its own; ``{"error": …}`` where it can't."""
    start = start_python("backends.inspection")
    try:
        done = subprocess.run(
            start.command, capture_output=True, timeout=INSPECT_TIMEOUT_S, env=start.env, cwd=start.folder,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"llama.cpp did not answer within {INSPECT_TIMEOUT_S:.0f} s"}
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return {"error": f"llama.cpp ended with {how}"}
    return found if isinstance(found, dict) else {"error": "llama.cpp gave no answer"}


def folders() -> dict[str, dict[str, Any]]:
    """The program's folders, and whether each can be written."""
    found = {}
    for name, path in {
        "config": paths.config_file().parent,
        "data": paths.data_dir(),
        "models": models_folder(),
        "cache": paths.cache_dir(),
        "logs": paths.log_dir(),
        "runtime": paths.runtime_dir(),
    }.items():
        found[name] = {"path": paths.display(path), "exists": path.exists(), "writable": writable(path)}
    return found


def models_folder() -> Path:
    """The folder for downloads, as configured."""
    from flashmoe.config.load import load_config

    return load_config().config.models_folder()


def writable(path: Path) -> bool:
    """Whether `path` can be written, or could be created."""
    here = existing(path)
    try:
        read_only = bool(os.statvfs(here).f_flag & os.ST_RDONLY)
    except OSError:
        return False
    return here.is_dir() and not read_only and os.access(here, os.W_OK | os.X_OK)


def models() -> dict[str, Any]:
    """How many models are here, and which of them can't be loaded."""
    from flashmoe.failures import told
    from flashmoe.hub.library import Library

    try:
        entries = Library().scan()
    except Exception as error:  # the report must say so, not end
        return {"count": None, "problems": [{"name": "", "problem": told(error)}]}
    broken = [{"name": entry.name, "problem": entry.problem} for entry in entries if entry.problem]
    return {"count": len(entries), "problems": broken}


def configuration() -> dict[str, Any]:
    """The configuration file, and what is wrong in it or in the presets."""
    from flashmoe.config.load import load_config
    from flashmoe.presets import load_presets

    loaded = load_config()
    problems = [problem.sentence for problem in (*loaded.problems, *load_presets().problems)]
    return {"file": paths.display(loaded.path), "exists": loaded.exists, "problems": problems}


def history() -> dict[str, Any]:
    """The chats' database: how many there are, how large it is, and what is wrong with it. Never creates it."""
    path = paths.chats_db()
    if not path.exists():
        return {"file": paths.display(path), "exists": False}
    from flashmoe.history import History, HistoryError

    found: dict[str, Any] = {"file": paths.display(path), "exists": True, "bytes": path.stat().st_size}
    try:
        with History() as chats:
            found |= {"chats": chats.count(), "problem": chats.problem}
    except HistoryError as error:
        found["problem"] = error.message
    return found


def terminal() -> dict[str, Any]:
    """What the terminal says about itself; no addresses."""
    columns, lines = shutil.get_terminal_size((0, 0))
    env = os.environ
    return {
        "term": env.get("TERM", ""),
        "program": env.get("TERM_PROGRAM", ""),
        "colours": colours(),
        "size": f"{columns}x{lines}" if sys.stdout.isatty() else "no terminal",
        "multiplexer": "tmux" if env.get("TMUX") else "screen" if env.get("STY") else "",
        "ssh": bool(env.get("SSH_CONNECTION") or env.get("SSH_TTY")),
        "encoding": locale.getpreferredencoding(False),
        "no_colour": bool(env.get("NO_COLOR")),
    }


def colours() -> str:
    """The colours that the terminal says it has."""
    term, mode = os.environ.get("TERM", ""), os.environ.get("COLORTERM", "").lower()
    if term in ("", "dumb"):
        return "none"
    if mode in ("truecolor", "24bit") or term.endswith("-direct"):
        return "24-bit"
    return "256" if "256" in term else "16"


def environment() -> dict[str, str]:
    """Variables that change what the program does; of secrets only that they are set."""
    prefixes = (
        "FLASHMOE_", "HF_", "XDG_", "GGML_", "LLAMA_", "CUDA_VISIBLE", "HIP_VISIBLE", "OMP_", "GOMP_", "NO_COLOR",
    )  # fmt: skip
    found = {}
    for name, value in sorted(os.environ.items()):
        if name.startswith(prefixes) or name.upper().endswith("_PROXY"):
            hidden = any(word in name.upper() for word in SECRET) or "@" in value
            found[name] = "set" if hidden else paths.display(value)
    return found
