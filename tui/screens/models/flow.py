"""What the model screen does: scanning, searching, planning, downloading, deleting, checking. Blocking work runs in
threads; every result comes back to the event loop before a widget changes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from backends.interface import EngineError
from flashmoe import figures
from flashmoe.hub.client import HubHit, HubQuant, HubRepo
from flashmoe.hub.errors import HubError
from flashmoe.hub.library import Library, undeletable
from flashmoe.plans.model_list import (
    FIT_WORDS,
    Row,
    catalogue_plan,
    catalogue_rows,
    exact_plan,
    hub_rows,
    local_rows,
    quant_fit,
    remote_plan,
    suitable_quant,
)
from tui.screens.dialogs import Choice, ChoiceDialog

if TYPE_CHECKING:
    from flashmoe.hub.client import HubClient
    from flashmoe.hub.downloads.views import JobView
    from flashmoe.plans.model_list import Machine, Plan
    from tui.app import FlashmoeApp


class ModelActions:
    """The half of `ModelsScreen` that knows the hub and the disk. `set_rows`, `say`, `describe`… are the screen's."""

    main: FlashmoeApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.machine: Machine | None = None
        self.library: Library | None = None
        self.plans: dict[str, Plan] = {}
        """By row: from headers."""
        self.estimates: dict[str, Plan] = {}
        """By row: from the catalogue's figures."""
        self.repos: dict[str, HubRepo] = {}
        self.learned: dict[str, str] = {}
        """By row: why there is no more to say."""
        self._catalogue_repos: set[str] = set()

    if TYPE_CHECKING:

        def set_rows(self, section: str, rows: list[Row], note: str = "") -> None: ...
        def note(self, section: str, note: str) -> None: ...
        def say(self, sentence: str, *, error: bool = False) -> None: ...
        def describe(self) -> None: ...
        def forget_download(self, id: str) -> None: ...
        def dismiss(self, result: str | None = None) -> Any: ...
        @property
        def here(self) -> Row | None: ...

    async def _client(self) -> HubClient:
        return (await self.main.downloading.manager()).client

    # ---- scanning and searching ----------------------------------------------------------------------------------

    async def scan(self) -> None:
        """The machine, the library and the catalogue; the disk's speed is measured last, where nobody did before."""
        from flashmoe.plans import measurements

        folder = self.main.config.models_folder()
        self.machine = await asyncio.to_thread(measurements.machine, folder, measure=False)
        await self._list()
        if self.machine.disk_bytes_s is None or self.machine.memory_bytes_s is None:
            self.say("Measuring how fast this disk is…")
            self.machine = await asyncio.to_thread(measurements.machine, folder)
            self.say("")
            await self._list()

    async def _list(self) -> None:
        here = self.machine
        assert here is not None

        def look() -> tuple[list[Row], list[Row], list[str], dict[str, Plan]]:
            from flashmoe.hub.catalogue import load_catalogue

            self.library = Library()
            catalogue = load_catalogue()
            self._catalogue_repos = {repo for model in catalogue.models for repo in model.repos}
            estimates = {
                f"catalogue:{m.name}": catalogue_plan(m, suitable_quant(m, here), here) for m in catalogue.models
            }
            rows = catalogue_rows(catalogue.models, here)
            return local_rows(self.library, here), rows, list(catalogue.problems), estimates

        local, catalogue, problems, self.estimates = await asyncio.to_thread(look)
        free = f"{figures.size(here.disk_free)} free on the disk" if here.disk_free is not None else ""
        self.plans = {key: plan for key, plan in self.plans.items() if not plan.speed or key.startswith("hub:")}
        self.set_rows("here", local, free if local else f"no models yet · {free}")
        self.set_rows("catalogue", catalogue, f"{figures.size(here.ram_available)} RAM available")
        for problem in problems:
            self.main.notify(problem, severity="warning", timeout=15, markup=False)

    async def search_hub(self, text: str) -> None:
        """Asks the hub for repositories; offline is a word beside the heading, never a dialog."""
        if text.startswith(("/", "~", "./")):
            self.set_rows("hub", [], "")
            return
        client = await self._client()
        offline = client.offline_reason()
        if offline:
            self.set_rows("hub", [], f"offline: {offline}")
            return
        from flashmoe.hub.names import looks_like_reference, parse_reference

        self.note("hub", "asking…")
        exact = parse_reference(text)[0] if looks_like_reference(text) else ""
        try:
            hits = await asyncio.to_thread(client.search, exact or text, limit=20)
        except HubError as error:
            word = "offline: " if error.code == "offline" else ""
            self.set_rows("hub", [], word + error.message)
            return
        if exact and all(hit.repo != exact for hit in hits):
            hits.insert(0, HubHit(exact, None, None, False, None))
        rows = hub_rows(hits, set() if text else self._catalogue_repos)
        what = f"“{text}”" if text else "wanted now"
        self.set_rows("hub", rows, what if rows else f"nothing matches “{text}”" if text else "")

    # ---- details -------------------------------------------------------------------------------------------------

    async def learn(self, row: Row) -> None:
        """Fills the details of a row: the exact plan of a local model, the files of a repository."""
        here = self.machine
        if here is None:
            return
        if row.section == "here":
            if row.path is None or row.key in self.plans or (row.entry is not None and row.entry.problem):
                return
            try:
                self.plans[row.key] = await asyncio.to_thread(exact_plan, row.path, here)
            except EngineError as error:
                self.learned[row.key] = error.message
        elif row.repo not in self.repos and row.key not in self.learned:
            with contextlib.suppress(HubError):
                await self._listing(row)
        if self.here is not None and self.here.key == row.key:
            self.describe()

    async def _listing(self, row: Row) -> HubRepo:
        """What the row's repository holds; raises `HubError` and remembers why."""
        known = self.repos.get(row.repo)
        if known is not None:
            return known
        client = await self._client()
        places = [row.repo, *(row.model.repos[1:] if row.model is not None else ())]
        for place in places:
            try:
                repo = await asyncio.to_thread(client.repo, place)
                break
            except HubError as error:
                if error.code != "not_found" or place == places[-1]:  # another upload may still be there
                    self.learned[row.key] = error.message
                    raise
        self.repos[row.repo] = repo
        self.learned.pop(row.key, None)
        return repo

    async def plan_exactly(self, row: Row) -> None:
        """Reads the header of the usual quant on the hub, or of the local file again."""
        here = self.machine
        if here is None:
            return
        if row.section == "here":
            self.plans.pop(row.key, None)
            self.learned.pop(row.key, None)
            await self.learn(row)
            return
        from flashmoe.hub.remote_header import read_remote

        try:
            repo = await self._listing(row)
            quant = self._usual(repo, row, here)
            moved = 0
            loop = asyncio.get_running_loop()

            def count(n: int) -> None:
                nonlocal moved
                moved += n
                loop.call_soon_threadsafe(self.say, f"Reading the header of {quant.label}: {figures.size(moved)}…")

            self.say(f"Reading the header of {quant.label}…")
            gguf = await asyncio.to_thread(read_remote, await self._client(), repo.repo, repo.commit, quant, count)
            self.plans[row.key] = await asyncio.to_thread(remote_plan, gguf, quant.size, here)
        except (HubError, EngineError) as error:
            self.say(error.message, error=True)
            return
        self.say(f"Planned {quant.label} from its header ({figures.size(moved)} moved).")
        self.describe()

    def _usual(self, repo: HubRepo, row: Row, here: Machine) -> HubQuant:
        from flashmoe.hub.selection import choose

        if row.quant:
            with contextlib.suppress(HubError):
                return choose(repo, row.quant)[0]
        return choose(repo, None, free=here.disk_free)[0]

    # ---- choosing ------------------------------------------------------------------------------------------------

    async def choose(self, row: Row) -> None:
        """Loads a local model; starts the download of another."""
        if row.section == "here":
            if row.entry is not None and row.entry.problem:
                self.say(f"{row.name}: {row.entry.problem}", error=True)
            elif row.path is not None:
                self.dismiss(str(row.path))
            return
        here = self.machine
        if here is None:
            return
        self.say(f"Asking the hub what {row.repo} holds…")
        try:
            repo = await self._listing(row)
            usual = self._usual(repo, row, here)
        except HubError as error:
            self.say(error.message, error=True)
            return
        self.say("")
        quants = [usual, *(q for q in repo.quants if q.complete and q is not usual)]
        choices = [Choice(str(i), _quant_line(q, here, usual=q is usual)) for i, q in enumerate(quants)]
        text = "Gated: the hub asks you to accept its terms first." if repo.gated else f"Into {self._folder()}."
        answer = await self.main.ask_screen(ChoiceDialog(f"Download from {repo.repo}", text, choices))
        if answer is not None:
            await self._start(repo, quants[int(answer)])

    def _folder(self) -> str:
        from flashmoe.paths import display

        return display(self.main.config.models_folder())

    async def _start(self, repo: HubRepo, quant: HubQuant) -> None:
        manager = await self.main.downloading.manager()
        try:
            await asyncio.to_thread(manager.add, repo, quant)
        except HubError as error:
            self.say(error.message, error=True)
            return
        self.say(f"Downloading {repo.repo}:{quant.label}; it goes on while you chat.")

    async def steer(self, what: str, view: JobView) -> None:
        """What the download pane asked for."""
        manager = await self.main.downloading.manager()
        if what == "load":
            self.dismiss(view.path)
        elif what == "pause":
            await asyncio.to_thread(manager.pause, view.id)
        elif what == "resume":
            await asyncio.to_thread(manager.resume, view.id)
        elif what == "dismiss":
            manager.dismiss(view.id)
            self.forget_download(view.id)
        elif what == "cancel":
            text = f"{figures.size(view.done)} of {figures.size(view.size)} are here and would be deleted."
            answer = await self.main.ask_screen(
                ChoiceDialog(
                    f"Cancel {view.repo}:{view.label}?",
                    text,
                    [Choice("no", "Keep it", "Space pauses a download"), Choice("yes", "Cancel and delete")],
                )
            )
            if answer == "yes":
                await asyncio.to_thread(manager.cancel, view.id)

    # ---- deleting and checking -----------------------------------------------------------------------------------

    async def delete_row(self, row: Row) -> None:
        """Asks, says what is freed; refuses what is loaded or isn't ours."""
        entry, library = row.entry, self.library
        if entry is None or library is None:
            self.say("Only models on this machine can be deleted." if row.section != "here" else "The guide stays.")
            return
        from flashmoe.hub.inuse import check_unused

        why_not = undeletable(entry)
        try:
            if why_not is None:
                await asyncio.to_thread(check_unused, entry.path, entry.name)
        except HubError as error:
            why_not = error.message
        if why_not is not None:
            self.say(why_not, error=True)
            return
        parts = f", {len(entry.files)} parts" if len(entry.files) > 1 else ""
        answer = await self.main.ask_screen(
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
            self.say(error.message, error=True)
            return
        self.say(f"Deleted {entry.name}: {figures.size(freed)} are free again.")
        await self._list()

    async def verify_row(self, row: Row) -> None:
        """Hashes the files of a local model in the background."""
        entry, library = row.entry, self.library
        if entry is None or library is None:
            self.say("Only models on this machine can be checked.")
            return
        from flashmoe.hub.verify import FileCheck, verify

        loop, stopped = asyncio.get_running_loop(), False

        def progress(done: int, total: int) -> bool:
            if done == total or done % (64 << 20) < (1 << 20):
                text = f"Checking {entry.name}: {done / max(total, 1):.0%} of {figures.size(total)}"
                loop.call_soon_threadsafe(self.say, text)
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
            self.say(bad[0].message, error=True)
        elif all(c.status == "ok" for c in checks):
            self.say(f"{entry.name} is sound: every sha256 is the hub's.")
        else:
            self.say(f"{entry.name} can be read; nobody told its hashes, so there is nothing to compare with.")


def _quant_line(quant: HubQuant, here: Machine, *, usual: bool) -> str:
    parts = f", {len(quant.files)} parts" if len(quant.files) > 1 else ""
    word = FIT_WORDS[quant_fit(quant.size, here)]
    mark = "   (usual)" if usual else ""
    return f"{quant.label:<14} {figures.size(quant.size):>9}{parts}   {word}{mark}"
