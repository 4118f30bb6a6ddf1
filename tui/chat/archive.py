"""The history, opened once, when it is first asked for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmoe.history import History


class Archive:
    """Opens the history in a thread (a large one takes a moment) and keeps it open."""

    def __init__(self) -> None:
        self._opening: asyncio.Task[History] | None = None

    async def history(self) -> History:
        """The open history. Raises `HistoryError`."""
        if self._opening is None:
            self._opening = asyncio.create_task(asyncio.to_thread(_open_history))
        return await asyncio.shield(self._opening)

    @property
    def problem(self) -> str | None:
        """Why what is written now isn't on the disk yet, while that is so; None where all is well or kept nowhere."""
        if self._opening is None or not self._opening.done():
            return None
        history = self._opening.result()
        return history.problem if history.persistent else None


def _open_history() -> History:
    from flashmoe.history import History

    return History()
