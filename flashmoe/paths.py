"""Where things are: configuration, data, caches, logs and sockets.

The XDG base directories are honoured (relative values are ignored, as their specification asks). ``FLASHMOE_HOME``
puts everything under one folder instead, which is how the tests, a USB stick and a shared machine keep apart from
the user's own data. No function here creates anything; `ensure_dir` does, and says in one sentence what to do where
it can't.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from backends.errors import ReportedError
from backends.system.private import make_folders
from flashmoe.text_safety import visible_exact

APP = "flashmoe-tui"

HOME_VARIABLE = "FLASHMOE_HOME"


class PathError(ReportedError):
    """A folder that can't be used: names it and the variable to set."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__("bad_path", what, advice)


def flashmoe_home() -> Path | None:
    """The folder that holds everything where ``FLASHMOE_HOME`` is set."""
    value = os.environ.get(HOME_VARIABLE, "")
    return Path(value).expanduser().absolute() if value else None


def user_home() -> Path:
    """The user's home folder; ``/`` where the system knows none (a bare container)."""
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return Path("/")


def _base(variable: str, default: str, under_home: str) -> Path:
    home = flashmoe_home()
    if home is not None:
        return home / under_home
    value = os.environ.get(variable, "")
    base = Path(value) if value and Path(value).is_absolute() else user_home() / default
    return base / APP


def config_dir() -> Path:
    """config.yaml, presets.yaml and the user's themes."""
    return _base("XDG_CONFIG_HOME", ".config", "config")


def config_file() -> Path:
    """The one configuration file; ``FLASHMOE_CONFIG`` names another."""
    value = os.environ.get("FLASHMOE_CONFIG", "")
    return Path(value).expanduser().absolute() if value else config_dir() / "config.yaml"


def presets_file() -> Path:
    """The user's named sampler presets."""
    return config_dir() / "presets.yaml"


def data_dir() -> Path:
    """Chats and downloaded models."""
    return _base("XDG_DATA_HOME", ".local/share", "data")


def models_dir() -> Path:
    """Where downloads go and the library looks first; ``FLASHMOE_MODELS`` names another (a larger disk)."""
    value = os.environ.get("FLASHMOE_MODELS", "")
    return Path(value).expanduser().absolute() if value else data_dir() / "models"


def chats_db() -> Path:
    """The history: an SQLite database."""
    return data_dir() / "chats.db"


def cache_dir() -> Path:
    """What may be deleted at any time: prompts that were read, catalogue pages, measured speeds."""
    return _base("XDG_CACHE_HOME", ".cache", "cache")


def repack_file() -> Path:
    """What repacking weights gains on this machine's processor."""
    return cache_dir() / "repack.json"


def heat_dir() -> Path:
    """How much each model's experts were used, for a warm start."""
    return cache_dir() / "heat"


def prompts_dir() -> Path:
    """Prompts that an engine has read, for the next one."""
    return cache_dir() / "prompts"


def state_dir() -> Path:
    """What is kept from one start to the next and nobody would miss for long."""
    return _base("XDG_STATE_HOME", ".local/state", "state")


def chosen_file() -> Path:
    """What was chosen in the app: theme, set of keys, monitor, order of the models."""
    return state_dir() / "chosen.json"


def log_dir() -> Path:
    """Logs: the engine's own prints, and the app's."""
    return state_dir() / "log"


def runtime_dir() -> Path:
    """Sockets and locks of running instances; gone after a restart. Falls back to a folder of this user in /tmp."""
    home = flashmoe_home()
    if home is not None:
        return home / "run"
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if value and Path(value).is_absolute() and os.access(value, os.W_OK | os.X_OK):
        return Path(value) / APP
    return Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}"


def guide_model() -> Path:
    """The demo model that comes with the project."""
    return Path(__file__).parent / "assets" / "guide.gguf"


def builtin_themes_dir() -> Path:
    """The themes that come with the project."""
    return Path(__file__).parent.parent / "themes"


def user_themes_dir() -> Path:
    """The user's own themes."""
    return config_dir() / "themes"


def all_paths() -> dict[str, Path]:
    """Every place by name, in the order that ``flashmoe-tui paths`` prints them."""
    return {
        "config": config_file(),
        "presets": presets_file(),
        "themes": user_themes_dir(),
        "builtin_themes": builtin_themes_dir(),
        "models": models_dir(),
        "chats": chats_db(),
        "cache": cache_dir(),
        "prompts": prompts_dir(),
        "chosen": chosen_file(),
        "logs": log_dir(),
        "runtime": runtime_dir(),
        "guide_model": guide_model(),
    }


def governing_variable(path: Path) -> str:
    """The environment variable that moves `path` elsewhere, for error messages."""
    if flashmoe_home() is not None:
        return HOME_VARIABLE
    for variable, folder in (
        ("FLASHMOE_MODELS", models_dir()),
        ("XDG_CONFIG_HOME", config_dir()),
        ("XDG_DATA_HOME", data_dir()),
        ("XDG_CACHE_HOME", cache_dir()),
        ("XDG_STATE_HOME", log_dir().parent),
        ("XDG_RUNTIME_DIR", runtime_dir()),
    ):
        if path == folder or folder in path.parents:
            return variable
    return HOME_VARIABLE


def ensure_dir(path: Path, *, private: bool = False) -> Path:
    """Creates `path` (0700 where `private`) and checks that it can be written to; returns it.

    Raises `PathError`. The runtime folder may lie in /tmp, where others can write: it must be ours and no link.
    """
    try:
        make_folders(path)
        if private:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode) or info.st_uid != os.getuid():
                raise PathError(
                    f"{display(path)} belongs to another user", f"remove it or set {governing_variable(path)}."
                )
            if stat.S_IMODE(info.st_mode) & 0o077:
                path.chmod(0o700)
        # os.access is wrong for root and on read-only mounts: try for real.
        fd, name = tempfile.mkstemp(prefix=".write-test-", dir=path)
        os.close(fd)
        with contextlib.suppress(OSError):
            Path(name).unlink()
    except FileExistsError:
        raise PathError(f"{display(path)} is a file where a folder is needed", "move it away.") from None
    except OSError as error:
        raise PathError(cannot_write(path, error)) from None
    return path


def log_file(name: str) -> Path:
    """A file in the log folder, or in a new folder of /tmp where that can't be written: nothing depends on logs."""
    try:
        return ensure_dir(log_dir()) / name
    except PathError:
        return Path(tempfile.mkdtemp(prefix=f"{APP}-log-")) / name


def cannot_write(path: Path, error: OSError) -> str:
    """One sentence: which folder can't be written, why, and which variable chooses another."""
    reason = {
        errno.EACCES: "no permission",
        errno.EPERM: "no permission",
        errno.EROFS: "the file system is read-only",
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.ENOTDIR: "a part of its path is a file",
    }.get(error.errno or 0, error.strerror or "it failed")
    variable = governing_variable(path)
    return f"Can't write to {display(path)} ({reason}); set {variable} to a folder that you can write to."


def display(path: Path | str) -> str:
    """`path` for people: the home folder as ``~``, and what nobody would see in a name shown."""
    text, home = str(path), str(user_home())
    if home != "/" and (text == home or text.startswith(home + "/")):
        text = "~" + text[len(home) :]
    return visible_exact(text)
