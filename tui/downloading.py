"""The downloads belong to the app: they go on while screens change and while one chats."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from textual.message import Message

from flashmoe.config.schema import Config
from tui.engine.messages import DownloadNews
from tui.notifier import Notifier

if TYPE_CHECKING:
    from flashmoe.hub.downloads.manager import DownloadManager
    from flashmoe.hub.downloads.views import JobView


class Owner(Notifier, Protocol):
    """What the downloads need of the app."""

    @property
    def config(self) -> Config:
        """The configuration, as it was read at the start."""
        ...

    def post_message(self, message: Message) -> bool:
        """Hands a message to the app; from any thread."""
        ...


class Downloading:
    """Owns the download manager; started a moment after the first paint, or when the model screen first opens."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._manager: DownloadManager | None = None
        self._starting: asyncio.Task[DownloadManager] | None = None
        self._told: dict[str, str] = {}

    async def manager(self) -> DownloadManager:
        """The manager, with what earlier runs left going on."""
        if self._manager is None:
            if self._starting is None:
                self._starting = asyncio.ensure_future(asyncio.to_thread(self._open))
            self._manager = await self._starting
        return self._manager

    async def start(self) -> None:
        """Goes on with unfinished downloads; costs nothing where there are none."""
        from flashmoe.hub.downloads.jobs import JobStore

        unfinished = await asyncio.to_thread(lambda: JobStore(self._owner.config.models_folder()).all())
        running = [job for job in unfinished if job.wanted == "run"]
        if running:
            await self.manager()
            what = f"{running[0].repo}:{running[0].label}" if len(running) == 1 else f"{len(running)} downloads"
            self._owner.notify(f"Resuming {what}.", markup=False, timeout=4)

    @property
    def active(self) -> bool:
        """Whether something is being downloaded."""
        return self._manager is not None and self._manager.active()

    async def close(self) -> None:
        """Stops; the next start goes on."""
        if self._manager is not None:
            await asyncio.to_thread(self._manager.close)

    def _open(self) -> DownloadManager:
        from flashmoe.hub.downloads.setup import open_manager

        manager = open_manager(self._owner.config, stays_open=True)
        manager.listen(self._heard)
        manager.start()
        return manager

    def _heard(self, view: JobView) -> None:
        """Called from the downloads' threads."""
        with contextlib.suppress(Exception):  # the app is ending
            self._owner.post_message(DownloadNews(view))

    def announce(self, view: JobView, *, quiet: bool) -> None:
        """A toast where a download ended; `quiet` where its pane is on the screen."""
        if self._told.get(view.id) == view.state:
            return
        self._told[view.id] = view.state
        if quiet:
            return
        if view.state == "done":
            self._owner.notify(f"{view.repo}:{view.label} downloaded: {view.checked}.", markup=False, timeout=10)
        elif view.state == "failed" or (view.state == "paused" and view.message):
            self._owner.notify(f"{view.repo}:{view.label}: {view.message}", severity="error", markup=False, timeout=15)
