"""The history: chats, messages as a tree, and answers that are written while they stream."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from flashmoe.history.base import Default, HistoryBase, as_text, now, to_json
from flashmoe.history.cuts import CutsMixin
from flashmoe.history.records import Attachment, Chat, ChatSettings, HistoryError, Message
from flashmoe.history.search import SearchMixin
from flashmoe.history.tree import TreeMixin
from flashmoe.history.writer import AnswerWriter, Flusher
from flashmoe.text_safety import encodable

TITLE_CHARS = 60
AT_LEAF: int = -1
"""As a parent: below the message that is shown last."""
DAY_S = 86400.0


class History(TreeMixin, CutsMixin, SearchMixin, HistoryBase):
    """Every chat. Methods are synchronous, safe from any thread, and raise `HistoryError`; `in_thread` is for asyncio.

    An answer is written through `start_answer`, whose `AnswerWriter.add` may be called from the event loop.
    """

    def __init__(self, path: Path | Default | None = Default.PATH) -> None:
        super().__init__(path)
        self._writers: list[AnswerWriter] = []
        self._writers_lock = threading.Lock()
        self._flusher: Flusher | None = None
        self._open_problem = self.problem

    def close(self) -> None:
        """Writes what is pending (open answers stay marked as partial) and closes the database."""
        for writer in self._open_writers():
            try:
                writer.finish("cancelled")
            except HistoryError as error:
                self.problem = error.message
        if self._flusher is not None:
            self._flusher.stop()
            self._flusher = None
        super().close()

    def __enter__(self) -> History:
        return self

    # ---- chats

    def create_chat(
        self, *, title: str = "", model: str = "", model_path: str = "", settings: ChatSettings | None = None
    ) -> Chat:
        """A new, empty chat. Without a title it gets one from its first question."""
        moment = now()
        with self.transaction() as db:
            cursor = db.execute(
                "INSERT INTO chats (uid, title, created, updated, model, model_path, settings) VALUES (?,?,?,?,?,?,?)",
                (uuid.uuid4().hex, _title(title), moment, moment, encodable(model), encodable(model_path),
                 to_json(settings or ChatSettings())),
            )  # fmt: skip
            chat_id = cursor.lastrowid
        return self.chat(chat_id or 0)

    def chat(self, chat_id: int) -> Chat:
        """One chat, deleted ones too."""
        chats = self._chats("WHERE c.id = ?", chat_id)
        if not chats:
            raise HistoryError(f"There is no chat {chat_id}.")
        return chats[0]

    def chats(self, *, limit: int = 200, offset: int = 0, deleted: bool = False, empty: bool = True) -> list[Chat]:
        """Pinned chats first, then the newest. `deleted` lists the trash; `empty=False` leaves out unused chats."""
        used = "" if empty else "AND c.leaf IS NOT NULL "
        if deleted:
            return self._chats(
                f"WHERE c.deleted IS NOT NULL {used}ORDER BY c.deleted DESC LIMIT ? OFFSET ?", limit, offset
            )
        return self._chats(
            f"WHERE c.deleted IS NULL {used}ORDER BY c.pinned DESC, c.updated DESC LIMIT ? OFFSET ?", limit, offset
        )

    def count(self, *, deleted: bool = False) -> int:
        """How many chats there are, or how many are in the trash."""
        (row,) = self._rows(f"SELECT count(*) FROM chats WHERE deleted IS {'NOT ' if deleted else ''}NULL")
        return int(row[0])

    def rename(self, chat_id: int, title: str) -> None:
        """Gives a chat another title."""
        self._set(chat_id, "title", _title(title))

    def set_pinned(self, chat_id: int, pinned: bool) -> None:
        """Keeps a chat at the top, or no longer."""
        self._set(chat_id, "pinned", int(pinned))

    def set_settings(self, chat_id: int, settings: ChatSettings) -> None:
        """Changes what the chat's next answers use."""
        self._set(chat_id, "settings", to_json(settings))

    def set_model(self, chat_id: int, model: str, model_path: str) -> None:
        """Notes which model the chat uses from now on."""
        self._set(chat_id, "model", encodable(model))
        self._set(chat_id, "model_path", encodable(model_path))

    def set_draft(self, chat_id: int, text: str) -> None:
        """Keeps what stands in the composer."""
        self._set(chat_id, "draft", encodable(text))

    def delete_chat(self, chat_id: int) -> None:
        """Moves a chat to the trash; `restore_chat` undoes it."""
        self._set(chat_id, "deleted", now())

    def restore_chat(self, chat_id: int) -> None:
        """Brings a chat back from the trash."""
        self._set(chat_id, "deleted", None)

    def purge(self, *, older_than_s: float = 0.0) -> list[str]:
        """Empties the trash of chats deleted longer ago; returns their uids (for what is kept apart, as KV caches)."""
        with self.transaction() as db:
            rows = db.execute("SELECT uid FROM chats WHERE deleted <= ?", (now() - older_than_s,)).fetchall()
            db.execute("DELETE FROM chats WHERE deleted <= ?", (now() - older_than_s,))
        return [uid for (uid,) in rows]

    def housekeep(self, *, keep_days: int, trash_days: int) -> list[str]:
        """What the configuration's section history asks for, and empty chats of days ago; returns purged uids."""
        moment = now()
        with self.transaction() as db:
            db.execute("DELETE FROM chats WHERE leaf IS NULL AND draft = '' AND updated < ?", (moment - DAY_S,))
            if keep_days:
                db.execute(
                    "UPDATE chats SET deleted = ? WHERE deleted IS NULL AND pinned = 0 AND updated < ?",
                    (moment, moment - keep_days * DAY_S),
                )
        return self.purge(older_than_s=trash_days * DAY_S)

    # ---- messages

    def add_message(
        self,
        chat_id: int,
        role: str,
        content: str,
        *,
        parent_id: int | None = AT_LEAF,
        thinking: str = "",
        attachments: Sequence[Attachment] = (),
        model: str = "",
    ) -> Message:
        """Adds a message and shows it. A parent that has children already gets one more branch.

        Editing a question is adding one with the old one's `parent_id`. None is the top of the chat.
        """
        return self.message(self._insert(chat_id, role, content, parent_id, thinking, attachments, model, "done"))

    def start_answer(self, chat_id: int, *, parent_id: int | None = AT_LEAF, model: str = "") -> AnswerWriter:
        """Opens an empty answer below `parent_id`. Regenerating is starting another with the same parent."""
        message_id = self._insert(chat_id, "assistant", "", parent_id, "", (), model, "streaming")
        return self._open_writer(self.message(message_id))

    def continue_answer(self, message_id: int) -> AnswerWriter:
        """Opens an answer that was cut short, to go on in it."""
        message = self.message(message_id)
        if message.role != "assistant" or message.status == "streaming":
            raise HistoryError("Only an answer that has ended can be continued.")
        with self.transaction() as db:
            db.execute(
                "UPDATE messages SET status = 'streaming', owner = ? WHERE id = ?", (self._owner, message_id)
            )  # fmt: skip
        return self._open_writer(message)

    def recent_prompts(self, limit: int = 200) -> list[str]:
        """The user's last different questions over all chats, newest first."""
        rows = self._rows("SELECT content FROM messages WHERE role = 'user' ORDER BY id DESC LIMIT ?", limit * 3)
        return list(dict.fromkeys(prompt for row in rows if (prompt := as_text(row[0])).strip()))[:limit]

    # ---- inside

    def _set(self, chat_id: int, column: str, value: object) -> None:
        with self.transaction() as db:
            if db.execute(f"UPDATE chats SET {column} = ? WHERE id = ?", (value, chat_id)).rowcount == 0:
                raise HistoryError(f"There is no chat {chat_id}.")

    def _insert(
        self, chat_id: int, role: str, content: str, parent_id: int | None, thinking: str,
        attachments: Sequence[Attachment], model: str, status: str,
    ) -> int:  # fmt: skip
        moment = now()
        content = encodable(content)
        with self.transaction() as db:
            row = db.execute("SELECT leaf, title FROM chats WHERE id = ?", (chat_id,)).fetchone()
            if row is None:
                raise HistoryError(f"There is no chat {chat_id}.")
            leaf, title = row
            if parent_id == AT_LEAF:
                parent_id = leaf
            elif parent_id is not None:
                self._check_parent(chat_id, parent_id)
            cursor = db.execute(
                "INSERT INTO messages (chat_id, parent_id, role, content, thinking, created, status, model, "
                "attachments, owner) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (chat_id, parent_id, role, content, encodable(thinking), moment, status, encodable(model),
                 encodable(to_json(tuple(attachments))), self._owner if status == "streaming" else None),
            )  # fmt: skip
            message_id = cursor.lastrowid or 0
            if leaf is not None and parent_id != leaf:
                self._remember_leaf(leaf)
            new_title = _title(content) if role == "user" and not title else title
            db.execute(
                "UPDATE chats SET leaf = ?, updated = ?, title = ? WHERE id = ?",
                (message_id, moment, new_title, chat_id),
            )
        return message_id

    def _check_parent(self, chat_id: int, parent_id: int) -> None:
        if self.message(parent_id).chat_id != chat_id:
            raise HistoryError(f"Message {parent_id} belongs to another chat.")

    def _open_writer(self, message: Message) -> AnswerWriter:
        writer = AnswerWriter(self, message)
        with self._writers_lock:
            self._writers.append(writer)
            if self._flusher is None:
                self._flusher = Flusher(self)
                self._flusher.start()
        return writer

    def _open_writers(self) -> list[AnswerWriter]:
        with self._writers_lock:
            return list(self._writers)

    def writers_or_end(self, flusher: Flusher) -> list[AnswerWriter]:
        """The open answers; where there is none, `flusher` is forgotten and must end."""
        with self._writers_lock:
            if not self._writers and self._flusher is flusher:
                self._flusher = None
            return list(self._writers)

    def forget_writer(self, writer: AnswerWriter) -> None:
        with self._writers_lock:
            if writer in self._writers:
                self._writers.remove(writer)

    def flush_problem(self, sentence: str | None) -> None:
        self.problem = sentence or self._open_problem


def _title(text: str) -> str:
    """A title of one line from any text."""
    words = " ".join(encodable(text)[: TITLE_CHARS * 8].split())
    return words if len(words) <= TITLE_CHARS else words[: TITLE_CHARS - 1].rstrip() + "…"
