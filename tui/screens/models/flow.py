"""What is done with a model: choosing, downloading, deleting, checking. Blocking work runs in threads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from flashmoe import figures
from flashmoe.hub.errors import HubError
from flashmoe.hub.library import undeletable
from flashmoe.hub.listing import HubQuant, HubRepo
from flashmoe.hub.names import show
from flashmoe.paths import display
from flashmoe.plans.model_list import FIT_WORDS, MORE_KEY, Row, quant_fit
from tui.screens.dialogs import Choice, ChoiceDialog
from tui.screens.models.finder import ModelFinder
from tui.screens.models.view import ModelsView

if TYPE_CHECKING:
    from flashmoe.hub.downloads.views import JobView
    from flashmoe.plans.model_list import Machine


class ModelFlow:
    """Acts on the row or the download that the user means; asks before anything is lost."""

    def __init__(self, view: ModelsView, finder: ModelFinder) -> None:
        self._view = view
        self._finder = finder

    # ---- choosing -------------------------------------------------------------------------------------------------

    async def choose(self, row: Row) -> None:
        """Loads a local model; starts the download of another."""
        view, finder = self._view, self._finder
        if row.section == "here":
            if row.entry is not None and row.entry.problem:
                view.say(f"{row.name}: {row.entry.problem}", error=True)
            elif row.path is not None:
                view.finish(str(row.path))
            return
        if row.key == MORE_KEY:
            await finder.search_more()
            return
        here = finder.machine
        if here is None:
            return
        view.say(f"Asking the hub what is in {row.repo}…")
        try:
            repo = await finder.listing(row)
            usual = await self._usual(repo, here)
        except HubError as error:
            view.say(error.message, error=True)
            return
        view.say("")
        first = [usual] if usual is not None else []
        quants = [*first, *(q for q in repo.quants if q.complete and q is not usual)]
        choices = [Choice(str(i), _quant_line(q, here, usual=q is usual)) for i, q in enumerate(quants)]
        text = "Gated: the hub asks you to accept its terms first." if repo.gated else f"Into {self._folder()}."
        answer = await view.host.ask_screen(ChoiceDialog(f"Download from {repo.repo}", text, choices))
        if answer is not None:
            await self._start(repo, quants[int(answer)], here)

    async def _usual(self, repo: HubRepo, here: Machine) -> HubQuant | None:
        """What ``pull`` would take; None where the repository has several models: the dialog lists them."""
        try:
            return await self._finder.usual(repo, here)
        except HubError as error:
            if error.code != "ambiguous":
                raise
            return None

    def _folder(self) -> str:
        return display(self._view.host.config.models_folder())

    async def _start(self, repo: HubRepo, quant: HubQuant, here: Machine) -> None:
        from flashmoe.hub.lookup import check_header, is_large

        manager = await self._view.host.downloading.manager()
        try:
            await asyncio.to_thread(check_header, manager.client, repo, quant)
            if is_large(quant.size, here.disk_free) and not await self._sure(quant, here):
                return
            await asyncio.to_thread(manager.add, repo, quant)
        except HubError as error:
            self._view.say(error.message, error=True)
            return
        self._view.say(f"Downloading {repo.repo}:{quant.label}; it continues while you chat.")

    async def _sure(self, quant: HubQuant, here: Machine) -> bool:
        """Asks before more than half of the free disk is taken."""
        free, size = figures.size(here.disk_free), figures.size(quant.size)
        answer = await self._view.host.ask_screen(
            ChoiceDialog(
                f"Download {size}?",
                f"That is more than half of the {free} free on the disk.",
                [Choice("no", "Don't download it"), Choice("yes", f"Download {quant.label}, {size}")],
            )
        )
        return answer == "yes"

    # ---- downloads ------------------------------------------------------------------------------------------------

    async def steer(self, what: str, job: JobView) -> None:
        """What the download pane asked for: ``load``, ``pause``, ``resume``, ``dismiss``, ``cancel``."""
        view = self._view
        manager = await view.host.downloading.manager()
        if what == "load":
            view.finish(job.path)
        elif what == "pause":
            await asyncio.to_thread(manager.pause, job.id)
        elif what == "resume":
            await asyncio.to_thread(manager.resume, job.id)
        elif what == "dismiss":
            manager.dismiss(job.id)
            view.forget_download(job.id)
        elif what == "cancel":
            text = f"{figures.size(job.done)} of {figures.size(job.size)} were downloaded and would be deleted."
            answer = await view.host.ask_screen(
                ChoiceDialog(
                    f"Cancel {job.repo}:{job.label}?",
                    text,
                    [Choice("no", "Keep it", "Space pauses a download"), Choice("yes", "Cancel and delete")],
                )
            )
            if answer == "yes":
                await asyncio.to_thread(manager.cancel, job.id)

    # ---- deleting and checking ------------------------------------------------------------------------------------

    async def delete(self, row: Row) -> None:
        """Asks, says what is freed; refuses what is loaded or isn't ours."""
        view, entry, library = self._view, row.entry, self._finder.library
        if entry is None or library is None:
            guide = row.section == "here"
            view.say("The guide can't be deleted." if guide else "Only models on this machine can be deleted.")
            return
        from flashmoe.hub.inuse import check_unused

        why_not = undeletable(entry)
        try:
            if why_not is None:
                await asyncio.to_thread(check_unused, entry.path, entry.name)
        except HubError as error:
            why_not = error.message
        if why_not is not None:
            view.say(why_not, error=True)
            return
        parts = f", {len(entry.files)} parts" if len(entry.files) > 1 else ""
        answer = await view.host.ask_screen(
            ChoiceDialog(
                f"Delete {entry.name}?",
                f"It frees {figures.size(entry.size)}{parts} in {self._folder()}.",
                [Choice("no", "Keep it"), Choice("yes", f"Delete, freeing {figures.size(entry.size)}")],
            )
        )
        if answer != "yes":
            return
        try:
            freed = await asyncio.to_thread(library.delete, entry)
        except HubError as error:
            view.say(error.message, error=True)
            return
        view.say(f"Deleted {entry.name}, freeing {figures.size(freed)}.")
        await self._finder.look_again()

    async def verify(self, row: Row) -> None:
        """Hashes the files of a local model in the background."""
        view, entry, library = self._view, row.entry, self._finder.library
        if entry is None or library is None:
            view.say("Only models on this machine can be verified.")
            return
        from flashmoe.hub.verify import FileCheck, verify

        loop, stopped = asyncio.get_running_loop(), False

        def progress(done: int, total: int) -> bool:
            if done == total or done % (64 << 20) < (1 << 20):
                text = f"Verifying {entry.name}: {done / max(total, 1):.0%} of {figures.size(total)}"
                loop.call_soon_threadsafe(view.say, text)
            return not stopped

        def work() -> list[FileCheck]:
            return list(verify(entry, library, progress))

        try:
            checks = await asyncio.to_thread(work)
        except asyncio.CancelledError:
            stopped = True
            raise
        bad = [c for c in checks if c.status in ("damaged", "unreadable")]
        if bad:
            view.say(bad[0].message, error=True)
        elif all(c.status == "ok" for c in checks):
            git = "" if all(c.checked == "sha256" for c in checks) else " (of some files git's hash)"
            view.say(f"{entry.name} is verified: every hash matches the hub's{git}.")
        elif any(c.checked == "size" for c in checks):
            view.say(f"{entry.name} has the right size; the server gave no hash to compare with.")
        else:
            view.say(f"{entry.name} is readable; there are no published hashes to compare it with.")


def _quant_line(quant: HubQuant, here: Machine, *, usual: bool) -> str:
    parts = f", {len(quant.files)} parts" if len(quant.files) > 1 else ""
    word = FIT_WORDS[quant_fit(quant.size, here)]
    mark = "   (usual)" if usual else ""
    return f"{show(quant.label, 60):<14} {figures.size(quant.size):>9}{parts}   {word}{mark}"
