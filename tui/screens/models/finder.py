"""What there is to choose from: the machine, the library, the catalogue, the hub, and a plan for each. Blocking work
runs in threads; every result comes back to the event loop before a widget changes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from backends.interface import EngineError
from flashmoe import figures
from flashmoe.hub.client import configured_endpoint
from flashmoe.hub.errors import HubError
from flashmoe.hub.library import Library, default_sources
from flashmoe.hub.listing import HubHit, HubQuant, HubRepo
from flashmoe.plans.model_list import (
    Row,
    catalogue_plan,
    catalogue_rows,
    exact_plan,
    hub_rows,
    local_rows,
    remote_plan,
    suitable_quant,
)
from tui.screens.models.view import ModelsView
from tui.texts import path_in, server_in

if TYPE_CHECKING:
    from flashmoe.hub.address import Reference
    from flashmoe.hub.client import HubClient
    from flashmoe.plans.model_list import Machine, Plan


class ModelFinder:
    """Finds models and learns about them; the screen shows what it knows."""

    def __init__(self, view: ModelsView) -> None:
        self._view = view
        self._catalogue_repos: set[str] = set()
        self._hits: list[HubHit] = []
        self._more = ""
        """Where the hub's next results are."""
        self._searched = ""
        self._meant: Reference | None = None
        """What the filter names, where it is a repository's address."""
        self.machine: Machine | None = None
        self.library: Library | None = None
        self.plans: dict[str, Plan] = {}
        """By row: from headers."""
        self.estimates: dict[str, Plan] = {}
        """By row: from the catalogue's figures."""
        self.repos: dict[str, HubRepo] = {}
        self.learned: dict[str, str] = {}
        """By row: why there is no more to say."""

    async def client(self) -> HubClient:
        """The hub."""
        return (await self._view.host.downloading.manager()).client

    def forget(self) -> None:
        """What was learned is to be learned again."""
        self.repos.clear()
        self.plans.clear()

    # ---- scanning and searching -----------------------------------------------------------------------------------

    async def scan(self) -> None:
        """The machine, the library and the catalogue; the disk's speed is measured last, where nobody did before."""
        from flashmoe.plans import measurements

        folder = self._view.host.config.models_folder()
        self.machine = await asyncio.to_thread(measurements.machine, folder, measure=False)
        await self.look_again()
        if self.machine.disk_bytes_s is None or self.machine.memory_bytes_s is None:
            self._view.say("Measuring how fast this disk is…")
            self.machine = await asyncio.to_thread(measurements.machine, folder)
            self._view.say("")
            await self.look_again()

    async def look_again(self) -> None:
        """Lists what is here and in the catalogue anew."""
        here = self.machine
        assert here is not None

        def look() -> tuple[list[Row], list[Row], list[str], dict[str, Plan]]:
            from flashmoe.hub.catalogue import load_catalogue

            self.library = Library(default_sources(self._view.host.config))
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
        self._view.set_rows("here", local, free if local else f"no models yet · {free}")
        self._view.set_rows("catalogue", catalogue, f"{figures.size(here.ram_available)} RAM available")
        for problem in problems:
            self._view.host.notify(problem, severity="warning", timeout=15, markup=False)

    async def search_hub(self, text: str) -> None:
        """Asks the hub for repositories; offline is a word beside the heading, never a dialog."""
        view = self._view
        if path_in(text) is not None:
            view.set_rows("hub", [], "")
            return
        if server_in(text) is not None:
            view.set_rows("hub", [], f"a server: {view.host.keymap.display('models.load')} uses it")
            return
        client = await self.client()
        offline = client.offline_reason()
        if offline:
            view.set_rows("hub", [], f"offline: {offline}")
            return
        from flashmoe.hub.address import looks_like_reference
        from flashmoe.hub.lookup import read_reference

        view.note("hub", "asking…")
        meant = read_reference(text) if looks_like_reference(text, endpoint=configured_endpoint()) else None
        exact = meant.repo if meant is not None else ""
        if meant != self._meant:
            self.repos.pop(exact, None)  # another branch of it, perhaps
        self._meant = meant
        try:
            page = await asyncio.to_thread(client.search_page, exact or text, limit=20)
        except HubError as error:
            word = "offline: " if error.code == "offline" else ""
            view.set_rows("hub", [], word + error.message)
            return
        hits = page.hits
        if exact and all(hit.repo != exact for hit in hits):
            hits.insert(0, HubHit(exact, None, None, False, None))
        self._hits, self._more, self._searched = hits, page.more, text
        self._show_hits()

    async def search_more(self) -> None:
        """The next repositories of the last search, behind those that are shown."""
        if not self._more:
            return
        self._view.note("hub", "asking…")
        before = self._more
        try:
            page = await asyncio.to_thread((await self.client()).search_page, "", limit=20, after=before)
        except HubError as error:
            self._view.note("hub", error.message)
            return
        if self._more == before:  # no other search meanwhile
            self._hits, self._more = [*self._hits, *page.hits], page.more
            self._show_hits()

    def _show_hits(self) -> None:
        text = self._searched
        rows = hub_rows(self._hits, set() if text else self._catalogue_repos, more=bool(self._more))
        what = f"“{text}”" if text else "trending"
        self._view.set_rows("hub", rows, what if rows else f"nothing matches “{text}”" if text else "")

    # ---- details --------------------------------------------------------------------------------------------------

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
        elif row.repo and row.repo not in self.repos and row.key not in self.learned:
            with contextlib.suppress(HubError):
                await self.listing(row)
        if self._view.here is not None and self._view.here.key == row.key:
            self._view.describe()

    async def listing(self, row: Row) -> HubRepo:
        """What the row's repository holds; raises `HubError` and remembers why."""
        known = self.repos.get(row.repo)
        if known is not None:
            return known
        client = await self.client()
        places = [row.repo, *(row.model.repos[1:] if row.model is not None else ())]
        for place in places:
            try:
                revision = self._meant.revision if self._meant is not None and self._meant.repo == place else None
                repo = await asyncio.to_thread(client.repo, place, revision)
                break
            except HubError as error:
                if error.code != "not_found" or place == places[-1]:  # another upload may still be there
                    self.learned[row.key] = error.message
                    raise
        self.repos[row.repo] = repo
        self.learned.pop(row.key, None)
        return repo

    async def usual(self, repo: HubRepo, here: Machine) -> HubQuant:
        """The model that ``pull`` would take of the repository, or of what the filter names. Raises `HubError`."""
        from flashmoe.hub.lookup import pick

        meant = self._meant if self._meant is not None and self._meant.repo == repo.repo else None
        return (await asyncio.to_thread(pick, await self.client(), repo, meant, free=here.disk_free)).quant

    async def plan_exactly(self, row: Row) -> None:
        """Reads the header of the usual quant on the hub, or of the local file again."""
        here, view = self.machine, self._view
        if here is None:
            return
        if row.section == "here":
            self.plans.pop(row.key, None)
            self.learned.pop(row.key, None)
            await self.learn(row)
            return
        from flashmoe.hub.remote_header import read_remote

        try:
            repo = await self.listing(row)
            quant = await self.usual(repo, here)
            moved = 0
            loop = asyncio.get_running_loop()

            def count(n: int) -> None:
                nonlocal moved
                moved += n
                loop.call_soon_threadsafe(view.say, f"Reading the header of {quant.label}: {figures.size(moved)}…")

            view.say(f"Reading the header of {quant.label}…")
            gguf = await asyncio.to_thread(read_remote, await self.client(), repo.repo, repo.commit, quant, count)
            self.plans[row.key] = await asyncio.to_thread(remote_plan, gguf, quant.size, here)
        except (HubError, EngineError) as error:
            view.say(error.message, error=True)
            return
        view.say(f"Planned {quant.label} from its header ({figures.size(moved)} downloaded).")
        view.describe()
