"""The history's connection: one lock, transactions, rows to structs, and a thread for asyncio callers."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from flashmoe import paths
from flashmoe.history import connection
from flashmoe.history.records import LATEST, Attachment, Chat, ChatSettings, Figures, HistoryError, Message
from flashmoe.text_safety import encodable

P = ParamSpec("P")
T = TypeVar("T")


class Default(enum.Enum):
    """Stands for `paths.chats_db`, where None already means memory."""

    PATH = enum.auto()


CHAT_COLUMNS = (
    "c.id, c.uid, c.title, c.created, c.updated, c.pinned, c.deleted, c.model, c.model_path, c.settings, c.draft, "
    "c.leaf, (SELECT count(*) FROM messages m WHERE m.chat_id = c.id)"
)
MESSAGE_COLUMNS = (
    "m.id, m.chat_id, m.parent_id, m.role, m.content, m.thinking, m.created, m.status, m.finish_reason, m.model, "
    "m.figures, m.attachments"
)


class HistoryBase:
    """Opens the database; every method may be called from any thread.

    `problem` is None, or one sentence for the user: why nothing is kept, or why the last write failed.
    """

    def __init__(self, path: Path | Default | None = Default.PATH) -> None:
        """Opens `path` (the user's own by default, None for memory). Never fails for want of a writable folder."""
        self.db_path = paths.chats_db() if isinstance(path, Default) else path
        self._lock = threading.RLock()
        self._db, self.problem = connection.connect(self.db_path)
        self.persistent = self.db_path is not None and self.problem is None
        """Whether what is written survives the program."""
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False
        self._owner = connection.owner()
        self._data_version = 0
        with contextlib.suppress(HistoryError):
            self._data_version = self._read_data_version()
            self._recover()

    # ---- running

    async def in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a method in the history's own thread: ``await history.in_thread(history.search, "text")``."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="history")
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: function(*args, **kwargs)
        )  # fmt: skip

    def close(self) -> None:
        """Closes the database; a second call does nothing."""
        if self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None
        with self._lock:
            if not self._closed:
                self._closed = True
                self._db.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed_elsewhere(self) -> bool:
        """Whether another instance has written since the last call: time to list the chats again. Cheap."""
        version = self._read_data_version()
        changed, self._data_version = version != self._data_version, version
        return changed

    # ---- for the parts of the history

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write: all of it or nothing. Nested ones join the outer one."""
        with self._lock, self._sentences():
            if self._closed:
                raise HistoryError("The history is closed.")
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self._lock, self._sentences():
            return self._db.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            if self._closed:
                raise HistoryError("The history is closed.") from None
            raise HistoryError(f"The history failed ({error}).") from error
        except sqlite3.Error as error:
            raise connection.explain(error, self.db_path) from error
        except UnicodeDecodeError as error:  # SQLite quotes the damage in its sentence
            raise connection.damaged("a text that isn't UTF-8", self.db_path) from error

    def _read_data_version(self) -> int:
        return int(self._rows("PRAGMA data_version")[0][0])

    def _recover(self) -> None:
        """Answers whose process died while it wrote them become partial ones."""
        for (owner,) in self._rows("SELECT DISTINCT owner FROM messages WHERE status = 'streaming'"):
            if owner is None or connection.is_dead(as_text(owner)):
                with self.transaction() as db:
                    db.execute(
                        "UPDATE messages SET status = 'partial', finish_reason = 'died', owner = NULL "
                        "WHERE status = 'streaming' AND owner IS ?",
                        (owner,),
                    )

    def _chats(self, where: str, *values: object) -> list[Chat]:
        return [_chat(row) for row in self._rows(f"SELECT {CHAT_COLUMNS} FROM chats c {where}", *values)]

    def _messages(self, rest: str, *values: object) -> list[Message]:
        return [_message(row) for row in self._rows(f"SELECT {MESSAGE_COLUMNS} {rest}", *values)]


def now() -> float:
    """Seconds since the epoch."""
    return time.time()


def to_json(value: object) -> str:
    """Structs as JSON text; lone surrogates, which JSON can't hold, become replacement characters."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_encodable(msgspec.to_builtins(value))).decode()


def _encodable(value: Any) -> Any:
    """`encodable` for every text inside plain data."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


_settings = msgspec.json.Decoder(ChatSettings, strict=False)
_figures = msgspec.json.Decoder(Figures, strict=False)
_attachments = msgspec.json.Decoder(tuple[Attachment, ...], strict=False)


def _decoded(decoder: msgspec.json.Decoder[T], text: str, fallback: T) -> T:
    """A column's struct; a damaged one must not hide the chat."""
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return fallback


# SQLite keeps any kind of value in any column: after damage, or another program's hand, a date may be a text.


def as_text(value: object) -> str:
    """A column's text; what is no text is written as one."""
    if isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)


def as_moment(value: object) -> float:
    """A column's time; 0 for what is none."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= LATEST else 0.0


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _chat(row: tuple[Any, ...]) -> Chat:
    return Chat(
        id=row[0], uid=as_text(row[1]), title=as_text(row[2]), created=as_moment(row[3]), updated=as_moment(row[4]),
        pinned=bool(row[5]), deleted=None if row[6] is None else as_moment(row[6]), model=as_text(row[7]),
        model_path=as_text(row[8]), settings=_decoded(_settings, as_text(row[9]), ChatSettings()),
        draft=as_text(row[10]), leaf=_number(row[11]), messages=row[12],
    )  # fmt: skip


def _message(row: tuple[Any, ...]) -> Message:
    return Message(
        id=row[0], chat_id=_number(row[1]) or 0, parent_id=_number(row[2]), role=as_text(row[3]),
        content=as_text(row[4]), thinking=as_text(row[5]), created=as_moment(row[6]),
        status=row[7] if row[7] in ("done", "partial", "streaming") else "partial",
        finish_reason=as_text(row[8]), model=as_text(row[9]),
        figures=_decoded(_figures, as_text(row[10]), Figures()) if row[10] else None,
        attachments=_decoded(_attachments, as_text(row[11]), ()) if row[11] != "[]" else (),
    )  # fmt: skip
