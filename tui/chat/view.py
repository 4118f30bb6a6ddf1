"""What the chat's flow needs of the screen that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from backends.interface import PrefillProgress
from tui.chat.conversation import Turn

if TYPE_CHECKING:
    from flashmoe.history import History

ContextChoice = Literal["drop", "summarise", "grow", "cancel"]


class FullContext(NamedTuple):
    """A prompt that doesn't fit, and what could be done about it."""

    tokens: int
    """Tokens of the prompt."""
    n_ctx: int
    oldest: int
    """Messages that could be left out; 0: there are none before the question."""
    shown: int
    """Messages that the model is shown now."""
    grow: int
    """Tokens of a larger context, 0 where the model can't have one."""
    grow_bytes: int | None
    """Memory that the larger one takes in addition, where known."""
    alone: int = 0
    """About the tokens of the last question, where it doesn't fit even alone; else 0."""


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

    def queue_changed(self) -> None:
        """Other questions wait in the shown chat."""
        ...

    def busy_changed(self) -> None:
        """An answer began or ended."""
        ...

    async def choose_context(self, full: FullContext) -> ContextChoice:
        """Asks what goes when the context is full."""
        ...

    async def cut_changed(self) -> None:
        """The model is shown more or less of the chat than before."""
        ...

    def summarising(self, n_turns: int, prefill: PrefillProgress | None, tokens: int) -> None:
        """A summary of so many messages is being made."""
        ...

    def key(self, binding_id: str) -> str:
        """The key in force for an action, for sentences."""
        ...
