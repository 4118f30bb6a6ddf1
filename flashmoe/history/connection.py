"""Opens the history's database, or says why chats stay in memory."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from functools import partial
from pathlib import Path

from backends.system import private
from flashmoe import paths
from flashmoe.history.records import HistoryError
from flashmoe.history.schema import MIGRATIONS, migrate

BUSY_MS = 5000
"""How long a write waits for another instance's."""

MAX_COPY_BYTES = 512 << 20
"""A database that can't be written is shown from a copy in memory up to this size."""


def connect(path: Path | None) -> tuple[sqlite3.Connection, str | None]:
    """A connection and, where nothing will be kept, one sentence that says why. None asks for memory."""
    if path is None:
        return _in_memory(None), None
    try:
        paths.ensure_dir(path.parent)
    except paths.PathError as error:
        return _in_memory(path), f"{error.message} Until then chats are only in memory."
    db = None
    try:
        _make_private(path)
        db = _open(str(path))
        _prepare(db, path)
        return db, None
    except HistoryError as error:
        reason = error.message
    except sqlite3.DatabaseError as error:
        reason = explain(error, path).message
    except UnicodeDecodeError:  # SQLite quotes the damage in its sentence
        reason = damaged("a text that isn't UTF-8", path).message
    except OSError as error:
        reason = paths.cannot_write(path.parent, error)
    if db is not None:
        db.close()
    return _in_memory(path), f"{reason} Until then chats are only in memory."


def _open(name: str, *, uri: bool = False) -> sqlite3.Connection:
    # isolation_level None: transactions are begun where this code says so. The lock in `History` serialises threads.
    db = sqlite3.connect(name, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False, uri=uri)
    db.text_factory = partial(str, encoding="utf-8", errors="replace")  # a damaged text must not hide its chat
    return db


def _make_private(path: Path) -> None:
    """A new database is made for its owner alone; SQLite makes its other files (-wal, -shm) like it. An older one that
    others may read becomes private."""
    os.close(private.opener(str(path), os.O_RDWR | os.O_CREAT))
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            file = path.with_name(path.name + suffix)
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute("PRAGMA journal_mode = WAL")  # some network file systems refuse: then its default works too
    db.execute("PRAGMA synchronous = FULL")  # a machine that loses power loses no flushed token
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA cache_size = -8192")
    migrate(db, paths.display(path))
    db.execute("BEGIN IMMEDIATE")  # a read-only file opens well and fails at the first write: fail now
    db.execute("ROLLBACK")


def _in_memory(copy_of: Path | None) -> sqlite3.Connection:
    """An empty database in memory, or a copy of one that can be read but not written."""
    db = _open(":memory:")
    if copy_of is not None and copy_of.is_file() and copy_of.stat().st_size <= MAX_COPY_BYTES:
        for mode in ("mode=ro", "immutable=1"):  # a WAL file without its -shm can only be read as immutable
            try:
                source = _open(f"{copy_of.absolute().as_uri()}?{mode}", uri=True)
                try:
                    if 0 < source.execute("PRAGMA user_version").fetchone()[0] <= len(MIGRATIONS):
                        source.backup(db)
                        if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                            raise sqlite3.DatabaseError("malformed")
                finally:
                    source.close()
                break
            except (sqlite3.DatabaseError, UnicodeDecodeError, TypeError):
                db.close()
                db = _open(":memory:")
    db.execute("PRAGMA foreign_keys = ON")
    migrate(db, "memory")
    return db


def explain(error: sqlite3.Error, path: Path | None) -> HistoryError:
    """A failure of SQLite's, by its code; `busy` ones are worth trying again."""
    name = paths.display(path) if path is not None else "the history in memory"
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return HistoryError(f"{name} has been locked by another instance for too long", "try again.", retry=True)
        case sqlite3.SQLITE_FULL:
            return HistoryError(f"There is no room left on the disk of {name}", "free some space to continue.")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            variable = paths.governing_variable(path) if path is not None else paths.HOME_VARIABLE
            advice = f"make it writable or set {variable} to a folder that you can write to."
            return HistoryError(f"{name} can't be written", advice)
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return damaged(str(error), path)
    return HistoryError(f"{name}: {error}.")


def damaged(how: str, path: Path | None) -> HistoryError:
    """A database that can't be read."""
    name = paths.display(path) if path is not None else "the history in memory"
    return HistoryError(f"{name} is damaged ({how})", "move it away, or put a backup in its place.")


def owner() -> str:
    """Names this process for as long as it lives: host, process id and its start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{_start_time(os.getpid())}"


def is_dead(name: str) -> bool:
    """Whether the process that `owner` named is gone. Unknown (another machine): no."""
    host, pid, start = ("::" + name).rsplit(":", 2)
    if host.lstrip(":") != socket.gethostname() or not pid.isdigit():
        return False
    return _start_time(int(pid)) != start


def _start_time(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return "gone"
        try:  # no /proc: only tell whether there is such a process
            os.kill(pid, 0)
        except ProcessLookupError:
            return "gone"
        except OSError:
            pass
        return "alive"
    return stat.rpartition(")")[2].split()[19]
