"""Keeps computed contexts of chats over chats, loads and restarts, so that coming back costs a read, not a prefill.

The engine works through saves, restores and questions in the order they were sent, so a question that is asked
meanwhile waits for exactly what it needs; nothing here keeps the screen from showing the next chat at once.
"""

from __future__ import annotations

import asyncio

from flashmoe.config.schema import KvCacheConfig
from tui.chat import kv_store
from tui.engine.controller import EngineController


class ContextKeeper:
    """Saves the context of the chat that is left and brings back that of the one that is opened."""

    def __init__(self, controller: EngineController, config: KvCacheConfig) -> None:
        self._controller = controller
        self._config = config
        self._saved: tuple[str, int] = ("", 0)
        """Chat (uid) and tokens as the file on disk has them, as far as known."""
        self._brought: tuple[str, int] = ("", 0)
        """Chat (uid) and number of the load whose engine holds its context, or has no file to take it from."""
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[object]] = set()

    def opened(self, uid: str, tokens: int) -> None:
        """Another chat is shown; `tokens` as its last answer left them: nothing new is to be saved of them."""
        self._saved = (uid, tokens)

    def worth_saving(self, uid: str, tokens: int) -> bool:
        """Whether something was computed since the last save, and enough of it."""
        return (uid, tokens) != self._saved and self._config.max_gib > 0 and tokens >= self._config.min_tokens

    async def save(self, uid: str, tokens: int) -> int:
        """Saves a chat's context where that pays; bytes written."""
        if not self.worth_saving(uid, tokens):
            return 0
        self._saved = (uid, tokens)
        return await self._save(uid, tokens)

    def save_soon(self, uid: str, tokens: int) -> None:
        """As `save`, apart from the caller."""
        if self.worth_saving(uid, tokens):
            self._saved = (uid, tokens)
            self.start(self._save(uid, tokens))

    async def _save(self, uid: str, tokens: int) -> int:
        async with self._lock:
            return await kv_store.save(self._controller, uid, tokens, self._config)

    async def saved(self) -> None:
        """Waits for a save that is under way, or is about to begin."""
        async with self._lock:
            pass

    async def bring_back(self, uid: str) -> int:
        """Brings a chat's context into the engine, once for each load; tokens that need no prefill now."""
        async with self._lock:
            if self._controller.model is None or self._brought == (uid, self._controller.loads):
                return 0
            self._brought = (uid, self._controller.loads)
            return await kv_store.restore(self._controller, uid)

    def start(self, work: object) -> None:
        """Runs a coroutine apart from the caller."""
        task: asyncio.Task[object] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Waits for what `start` began."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
