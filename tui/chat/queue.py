"""Questions that wait for an answer that is being written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flashmoe.history.records import Attachment
from tui.chat.conversation import Conversation, Turn


@dataclass(eq=False)
class Queued:
    """One question, for the chat in which it was written."""

    conversation: Conversation
    text: str
    attachments: tuple[Attachment, ...] = ()
    editing: Turn | None = None

    def of(self, conversation: Conversation) -> bool:
        """Whether it is for this chat, which may have been opened anew since."""
        return conversation is self.conversation or (
            conversation.id is not None and conversation.id == self.conversation.id
        )


class QuestionQueue:
    """In the order in which they were written; each is asked once its chat is shown and no answer is being written."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is told when another question waits, or one no longer does."""
        self._changed = changed
        self._items: list[Queued] = []

    def add(self, item: Queued) -> None:
        """Waits from now on."""
        self._items.append(item)
        self._changed()

    def of(self, conversation: Conversation) -> list[Queued]:
        """What waits in a chat."""
        return [item for item in self._items if item.of(conversation)]

    def take(self, conversation: Conversation, *, last: bool = False) -> Queued | None:
        """The question of a chat that is next, or (`last`) was queued last; it doesn't wait any more."""
        items = self.of(conversation)
        if not items:
            return None
        item = items[-1 if last else 0]
        self._items.remove(item)
        self._changed()
        return item
