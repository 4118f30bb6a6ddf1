"""Branches: the messages of a chat form a tree, and one path of it is shown."""

from __future__ import annotations

import msgspec

from flashmoe.history.base import HistoryBase
from flashmoe.history.records import HistoryError, Message

# A parent is older than its children, so its id is lower: in a damaged database, where a message may be its own parent,
# the way up ends all the same.
_PATH = """
FROM (WITH RECURSIVE up(id, parent_id, depth) AS (
        SELECT id, parent_id, 0 FROM messages WHERE id = ?
        UNION ALL SELECT p.id, p.parent_id, up.depth + 1 FROM messages p JOIN up ON p.id = up.parent_id AND p.id < up.id
      ) SELECT id, depth FROM up) path
JOIN messages m ON m.id = path.id ORDER BY path.depth DESC
"""


class TreeMixin(HistoryBase):
    """Paths and branches of `History`."""

    def message(self, message_id: int) -> Message:
        """One message, with its place among its variants."""
        found = self._messages("FROM messages m WHERE m.id = ?", message_id)
        if not found:
            raise HistoryError(f"There is no message {message_id}.")
        return self._with_variants(found)[0]

    def path(self, chat_id: int, *, leaf: int | None = None) -> list[Message]:
        """The messages from the top to `leaf`; None is the branch that is shown."""
        if leaf is None:
            rows = self._rows("SELECT leaf FROM chats WHERE id = ?", chat_id)
            if not rows:
                raise HistoryError(f"There is no chat {chat_id}.")
            leaf = rows[0][0]
            if leaf is None:
                return []
        return self._with_variants(self._messages(_PATH, leaf))

    def all_messages(self, chat_id: int) -> list[Message]:
        """Every message of every branch, in the order they were made."""
        return self._with_variants(self._messages("FROM messages m WHERE m.chat_id = ? ORDER BY m.id", chat_id))

    def misplaced(self, chat_id: int) -> int:
        """How many messages of a chat have no valid place below another one: 0 unless the database is damaged."""
        rows = self._rows(
            "SELECT count(*) FROM messages m WHERE m.chat_id = ? AND m.parent_id IS NOT NULL AND (m.parent_id >= m.id "
            "OR NOT EXISTS (SELECT 1 FROM messages p WHERE p.id = m.parent_id AND p.chat_id = m.chat_id))",
            chat_id,
        )
        return int(rows[0][0])

    def variants(self, message_id: int) -> list[int]:
        """The ids of a message and its siblings, in the order they were made."""
        message = self.message(message_id)
        rows = self._rows(
            "SELECT id FROM messages WHERE chat_id = ? AND parent_id IS ? ORDER BY id",
            message.chat_id, message.parent_id,
        )  # fmt: skip
        return [row[0] for row in rows]

    def step_variant(self, message_id: int, step: int) -> list[Message]:
        """Shows the variant `step` to the right (left where negative) of a message; returns the new path.

        It stops at the ends. Below the variant the branch that was shown there last comes back.
        """
        ids = self.variants(message_id)
        index = min(max(ids.index(message_id) + step, 0), len(ids) - 1)
        return self.show(ids[index])

    def show(self, message_id: int) -> list[Message]:
        """Shows the branch through a message (a search hit); returns the new path."""
        message = self.message(message_id)
        with self.transaction() as db:
            (leaf,) = db.execute("SELECT leaf FROM chats WHERE id = ?", (message.chat_id,)).fetchone()
            if leaf is not None:
                self._remember_leaf(leaf)
            new_leaf = self._leaf_below(message_id)
            db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (new_leaf, message.chat_id))
        return self.path(message.chat_id)

    def rewind(self, message_id: int | None, chat_id: int) -> list[Message]:
        """Shows the chat only up to a message (None: as if it were empty), nothing is deleted; returns the path."""
        if message_id is not None and self.message(message_id).chat_id != chat_id:
            raise HistoryError(f"Message {message_id} belongs to another chat.")
        with self.transaction() as db:
            db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (message_id, chat_id))
        return self.path(chat_id)

    def _remember_leaf(self, leaf: int) -> None:
        """Notes on every message of the path to `leaf` that this branch was shown below it."""
        with self.transaction() as db:
            db.execute(
                "WITH RECURSIVE up(id, parent_id) AS (SELECT id, parent_id FROM messages WHERE id = ? UNION ALL "
                "SELECT p.id, p.parent_id FROM messages p JOIN up ON p.id = up.parent_id AND p.id < up.id) "
                "UPDATE messages SET last_leaf = ? WHERE id IN (SELECT id FROM up)",
                (leaf, leaf),
            )

    def _leaf_below(self, message_id: int) -> int:
        """The leaf that was shown below a message last, else its newest descendant's end."""
        (row,) = self._rows("SELECT last_leaf FROM messages WHERE id = ?", message_id)
        if row[0] is not None and self._rows("SELECT 1 FROM messages WHERE id = ?", row[0]):
            return int(row[0])
        current = message_id
        while rows := self._rows("SELECT max(id) FROM messages WHERE parent_id = ? AND id > ?", current, current):
            if rows[0][0] is None:
                break
            current = rows[0][0]
        return current

    def _with_variants(self, messages: list[Message]) -> list[Message]:
        """Fills in which variant of how many each message is, with one query."""
        if not messages:
            return messages
        siblings: dict[int | None, list[int]] = {}
        for message_id, parent_id in self._rows(
            "SELECT id, parent_id FROM messages WHERE chat_id = ? ORDER BY id", messages[0].chat_id
        ):
            siblings.setdefault(parent_id, []).append(message_id)
        filled = []
        for message in messages:
            ids = siblings.get(message.parent_id, [message.id])
            if len(ids) > 1 and message.id in ids:
                message = msgspec.structs.replace(message, variant=ids.index(message.id) + 1, variants=len(ids))
            filled.append(message)
        return filled
