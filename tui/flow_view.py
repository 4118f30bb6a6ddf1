"""What the chat's flow needs of the screen that shows it."""

from __future__ import annotations

from typing import Literal, Protocol

from flashmoe.history import History
from tui.conversation import Turn

ContextChoice = Literal["drop", "summarise", "grow", "cancel"]


class FlowView(Protocol):
    """What the flow needs of the screen."""

    async def history(self) -> History:
        """The open history."""
        ...

    async def show_turns(self, turns: list[Turn]) -> None:
        """Shows another path."""
        ...

    async def add_turn(self, turn: Turn) -> None:
        """Shows one more turn at the end."""
        ...

    def turn_changed(self, turn: Turn) -> None:
        """Shows a turn's figures, ending, error or branches anew."""
        ...

    async def reopen_turn(self, turn: Turn) -> None:
        """An answer goes on after it had ended."""
        ...

    def say(self, sentence: str, level: str = "info") -> None:
        """One sentence that stays in sight."""
        ...

    def busy_changed(self) -> None:
        """An answer began or ended."""
        ...

    async def choose_context(self, count: int, n_ctx: int, can_grow: bool, can_drop: bool) -> ContextChoice:
        """Asks what goes when the context is full."""
        ...

    def key(self, binding_id: str) -> str:
        """The key in force for an action, for sentences."""
        ...
