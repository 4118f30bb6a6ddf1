"""What the model is no longer shown of a chat: the oldest messages of a branch, left out when the context was full.

A cut belongs to the message that was the last one before the question it was made for, so it holds for every branch
below that message and for no other. Cuts on one path follow each other, and the newest at the deepest message is the
one in force; taking it back brings the one before it into force.
"""

from __future__ import annotations

from typing import Any

from flashmoe.history.base import HistoryBase, as_moment, as_text, now
from flashmoe.history.records import ContextCut, HistoryError
from flashmoe.text_safety import encodable

_PATH_UP = """
WITH RECURSIVE up(id, parent_id, depth) AS (
    SELECT id, parent_id, 0 FROM messages WHERE id = ?
    UNION ALL SELECT p.id, p.parent_id, up.depth + 1 FROM messages p JOIN up ON p.id = up.parent_id AND p.id < up.id
)
"""
_COLUMNS = "k.id, k.message_id, k.upto_id, k.summary, k.model, k.created"


class CutsMixin(HistoryBase):
    """The cuts of `History`."""

    def cut_context(self, message_id: int, upto_id: int, *, summary: str = "", model: str = "") -> ContextCut:
        """Notes that below `message_id` the model isn't shown the messages from the top to `upto_id`.

        `upto_id` is `message_id` or one of its ancestors. `summary` stands in for what is left out; `model` wrote it.
        """
        with self.transaction() as db:
            if not db.execute(f"{_PATH_UP} SELECT 1 FROM up WHERE id = ?", (message_id, upto_id)).fetchone():
                raise HistoryError(f"Message {upto_id} is not on the way to message {message_id}.")
            cursor = db.execute(
                "INSERT INTO context_cuts (message_id, upto_id, summary, model, created) VALUES (?,?,?,?,?)",
                (message_id, upto_id, encodable(summary), encodable(model), now()),
            )
            return self._cuts("WHERE k.id = ?", cursor.lastrowid)[0]

    def context_cut(self, leaf: int | None) -> ContextCut | None:
        """The cut in force on the path from the top to `leaf`; None where the model is shown all of it."""
        if leaf is None:
            return None
        rows = self._rows(
            f"{_PATH_UP} SELECT {_COLUMNS} FROM context_cuts k JOIN up ON up.id = k.message_id "
            "ORDER BY up.depth, k.id DESC LIMIT 1",
            leaf,
        )
        return _cut(rows[0]) if rows else None

    def undo_cut(self, cut_id: int) -> None:
        """Takes a cut back. Nothing happens where it is gone already."""
        with self.transaction() as db:
            db.execute("DELETE FROM context_cuts WHERE id = ?", (cut_id,))

    def cuts_of(self, chat_id: int) -> list[ContextCut]:
        """Every cut of a chat, in the order they were made."""
        return self._cuts("JOIN messages m ON m.id = k.message_id WHERE m.chat_id = ? ORDER BY k.id", chat_id)

    def _cuts(self, rest: str, *values: object) -> list[ContextCut]:
        return [_cut(row) for row in self._rows(f"SELECT {_COLUMNS} FROM context_cuts k {rest}", *values)]


def _cut(row: tuple[Any, ...]) -> ContextCut:
    return ContextCut(row[0], row[1], row[2], as_text(row[3]), as_text(row[4]), as_moment(row[5]))
