"""Writes an answer while it streams: tokens go to memory at once and to disk once a second, by a thread.

So neither the event loop nor the tokens wait for the disk, a token is on disk at most `FLUSH_S` (plus the write
itself) after `add`, and where the disk is full the answer stays in memory and goes to disk as soon as there is room.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import AbstractContextManager
from typing import Protocol

from flashmoe.history.base import now, to_json
from flashmoe.history.records import Figures, HistoryError, Message
from flashmoe.text_safety import encodable

FLUSH_S = 1.0


class AnswerStore(Protocol):
    """What a writer needs of the history that keeps its answer."""

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]: ...
    def message(self, message_id: int) -> Message: ...
    def forget_writer(self, writer: AnswerWriter) -> None: ...
    def writers_or_end(self, flusher: Flusher) -> list[AnswerWriter]: ...
    def flush_problem(self, problem: str | None) -> None: ...


class AnswerWriter:
    """One answer that is being written. `add` never blocks; `finish` writes the rest and the figures."""

    def __init__(self, history: AnswerStore, message: Message) -> None:
        self.message_id = message.id
        self.chat_id = message.chat_id
        self._history = history
        self._before = message
        self._lock = threading.Lock()  # of the texts; held for moments, `add` takes it
        self._writing = threading.Lock()  # a flush must not write its older text after `finish` has written all
        self._content = [message.content]
        self._thinking = [message.thinking]
        self._dirty = False
        self._done = False
        self._end: tuple[str, Figures | None] | None = None
        """How the answer ended, where that could not be written yet."""

    @property
    def content(self) -> str:
        """The answer so far."""
        with self._lock:
            return "".join(self._content)

    @property
    def thinking(self) -> str:
        """The thinking so far."""
        with self._lock:
            return "".join(self._thinking)

    def add(self, text: str, *, thinking: bool = False) -> None:
        """Takes the next piece of text. Callable from the event loop: no disk is touched."""
        with self._lock:
            (self._thinking if thinking else self._content).append(text)
            self._dirty = True

    def flush(self) -> None:
        """Writes what came since the last flush, and an end that could not be written. Raises `HistoryError`; then all
        stays here for the next one."""
        if self._end is not None and not self._done:
            self.finish(*self._end)
            return
        with self._writing:
            with self._lock:
                if not self._dirty or self._done:
                    return
                content, thinking = self._texts()
                self._dirty = False
            try:
                with self._history.transaction() as db:
                    db.execute(
                        "UPDATE messages SET content = ?, thinking = ? WHERE id = ?",
                        (encodable(content), encodable(thinking), self.message_id),
                    )
            except HistoryError:
                with self._lock:
                    self._dirty = True
                raise

    def finish(self, reason: str, figures: Figures | None = None) -> Message:
        """Ends the answer: `reason` as in `Finished`, or ``died``. Those but ``stop`` and ``length`` are partial.

        Raises `HistoryError` where the rest can't be written; it is then tried again with every flush, and the first
        end counts.
        """
        if self._end is None:
            if figures is not None and self._before.figures is not None:
                figures = self._before.figures.plus(figures)
            self._end = (reason, figures)
        with self._writing:
            self._finish(*self._end)
        self._history.forget_writer(self)
        return self._history.message(self.message_id)

    def _finish(self, reason: str, figures: Figures | None) -> None:
        with self._lock:
            content, thinking = self._texts()
        status = "done" if reason in ("stop", "length") else "partial"
        with self._history.transaction() as db:
            db.execute(
                "UPDATE messages SET content = ?, thinking = ?, status = ?, finish_reason = ?, figures = "
                "coalesce(?, figures), owner = NULL WHERE id = ?",
                (encodable(content), encodable(thinking), status, reason,
                 to_json(figures) if figures is not None else None, self.message_id),
            )  # fmt: skip
            db.execute("UPDATE chats SET updated = ? WHERE id = ?", (now(), self.chat_id))
        with self._lock:
            self._done = True

    def _texts(self) -> tuple[str, str]:
        """The whole texts; joined in place, so that a long answer is not joined from single tokens each time."""
        self._content = ["".join(self._content)]
        self._thinking = ["".join(self._thinking)]
        return self._content[0], self._thinking[0]


class Flusher(threading.Thread):
    """Flushes a history's open answers once a second; ends when there is none."""

    def __init__(self, history: AnswerStore) -> None:
        super().__init__(name="history-flush", daemon=True)
        self._history = history
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """Asks the thread to end."""
        self._stop_asked.set()

    def run(self) -> None:
        due = time.monotonic() + FLUSH_S
        while not self._stop_asked.wait(max(due - time.monotonic(), 0.0)):
            due = time.monotonic() + FLUSH_S
            writers = self._history.writers_or_end(self)
            if not writers:
                return
            for writer in writers:
                try:
                    writer.flush()
                    self._history.flush_problem(None)
                except HistoryError as error:
                    self._history.flush_problem(error.message)
