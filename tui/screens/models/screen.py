"""^O: every model in one list - here, in the catalogue, on the hub - with what would happen if it were loaded."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from flashmoe.config.chosen import choose, read_chosen
from flashmoe.hub.downloads.views import ACTIVE, JobView
from flashmoe.plans.model_list import SECTION_TITLES, SORTS, Row, matches, sort_rows
from tui.host import Host
from tui.keymap import bindings
from tui.screens.models import details as details
from tui.screens.models.finder import ModelFinder
from tui.screens.models.flow import ModelFlow
from tui.screens.models.rows import row_line, section_line
from tui.texts import path_in, server_in
from tui.widgets.download_pane import DownloadPane
from tui.widgets.fields import LineField
from tui.widgets.key_bar import KeyBar

if TYPE_CHECKING:
    from flashmoe.plans.model_list import Plan

SEARCH_PAUSE_S = 0.5
DETAILS_PAUSE_S = 0.15

_BINDINGS: list[BindingType] = [
    *bindings("models"),
    Binding("down", "move(1)", show=False, priority=True),
    Binding("up", "move(-1)", show=False, priority=True),
    Binding("pagedown", "move(10)", show=False, priority=True),
    Binding("pageup", "move(-10)", show=False, priority=True),
]
_KEYS = [
    "models.load",
    "models.sort",
    "models.plan",
    "models.downloads",
    "models.delete",
    "models.verify",
    "models.back",
]
_DOWNLOAD_KEYS = ["downloads.toggle", "downloads.cancel", "models.downloads", "models.back"]


class ModelsScreen(Screen[str | None]):
    """Letters go into the filter, which also searches the hub; the list moves with the arrow keys. Returns a path."""

    CSS_PATH = "models.tcss"
    BINDINGS = _BINDINGS
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (116, "-broad"), (150, "-huge")]
    VERTICAL_BREAKPOINTS = [(0, "-flat"), (18, "-low"), (28, "-tall")]

    def __init__(self, host: Host, *, downloads: bool = False) -> None:
        super().__init__()
        self.host = host
        self.finder = ModelFinder(self)
        self.flow = ModelFlow(self, self.finder)
        self._downloads_first = downloads
        self._plan_key = host.keymap.display("models.plan").replace(" ", "\u00a0")  # not over the end of a line
        chosen = read_chosen().sort
        self._sort = chosen if chosen in SORTS else SORTS[0]
        self._filter = ""
        self._rows: dict[str, list[Row]] = {"here": [], "catalogue": [], "hub": []}
        self._notes: dict[str, str] = {"here": "looking…", "catalogue": "", "hub": ""}
        self._shown: list[Row | None] = []
        self._wanted_key = ""
        self._moved = False
        """Whether the user put the cursor where it is; until then it stays on the first row, whatever arrives."""
        self._search_timer: Timer | None = None
        self._details_timer: Timer | None = None
        self._said_by = ""

    def compose(self) -> ComposeResult:
        """Filter, list, details, downloads, what happened, keys."""
        yield Static(id="models-title", markup=False)
        wide = self.app.size.width >= 72
        hint = (
            "Type to filter, and to search the hub (or owner/name, or a path)"
            if wide
            else "Type to filter or search the hub"
        )
        field = LineField(placeholder=hint, id="models-filter")
        field.cursor_blink = False
        yield field
        with Container(id="models-body"):
            yield OptionList(id="models-list", markup=False)
            with VerticalScroll(id="models-details", can_focus=False):
                yield Static(markup=False)
        yield DownloadPane()
        yield Static(id="models-state", markup=False)
        yield KeyBar(self.host.keymap, _KEYS)

    async def on_mount(self) -> None:
        """Looks for everything in the background."""
        self._title()
        pane = self.query_one(DownloadPane)
        pane.display = False
        self.query_one(Input).focus()
        self.run_worker(self._open_downloads(), group="downloads")
        self.run_worker(self.finder.scan(), group="scan", exclusive=True)
        self.run_worker(self.finder.search_hub(""), group="search", exclusive=True)

    async def _open_downloads(self) -> None:
        manager = await self.host.downloading.manager()
        pane = self.query_one(DownloadPane)
        pane.show_all(manager.jobs())
        pane.display = bool(pane.views)
        if self._downloads_first:
            if pane.views:
                self.action_downloads()
            else:
                self.say("There are no downloads; choose a model from the catalogue or the hub to start one.")

    # ---- the list --------------------------------------------------------------------------------------------------

    def set_rows(self, section: str, rows: list[Row], note: str = "") -> None:
        """Replaces one section and draws the list again; the cursor stays on its row."""
        self._rows[section], self._notes[section] = rows, note
        self.fill()

    def note(self, section: str, note: str) -> None:
        """A few words beside a section's heading."""
        self._notes[section] = note
        self.fill()

    def fill(self) -> None:
        """Draws the list."""
        options = self.query_one("#models-list", OptionList)
        here = self.here
        keep = self._wanted_key or (here.key if here is not None and self._moved else "")
        width = max(30, options.scrollable_content_region.width or self.size.width - 2) - 1
        busy = {f"{v.repo}:{v.label}": v for v in self.query_one(DownloadPane).views if v.state in ACTIVE}
        shown: list[Row | None] = []
        drawn: list[Option] = []
        for section, rows in self._rows.items():
            fitting = [row for row in rows if section == "hub" or matches(row, self._filter)]
            if not fitting and (not self._notes[section] or (self._filter and section != "hub")):
                continue
            if drawn:
                shown.append(None)
                drawn.append(Option(" ", disabled=True))
            shown.append(None)
            drawn.append(Option(section_line(SECTION_TITLES[section], self._notes[section], width), disabled=True))
            by = self._sort if section != "hub" or self._sort != "fit" else ""
            for row in sort_rows(fitting, by) if by else fitting:
                shown.append(row)
                drawn.append(Option(self._line(row, width, busy)))
        self._shown = shown
        options.clear_options()
        options.add_options(drawn)
        keys = [row.key if row is not None else "" for row in shown]
        first = next((i for i, row in enumerate(shown) if row is not None), None)
        options.highlighted = keys.index(keep) if keep and keep in keys else first
        if self._wanted_key and keep in keys:
            self._wanted_key, self._moved = "", True
        self._describe_soon()

    def _line(self, row: Row, width: int, busy: dict[str, JobView]) -> Content:
        model = self.host.controller.model
        loaded = model is not None and row.path is not None and Path(model.path) == row.path
        job = next((v for name, v in busy.items() if row.repo and name.startswith(row.repo + ":")), None)
        doing = "downloading" if job is not None and row.section != "here" else ""  # how far says the pane
        return row_line(row, width, loaded=loaded, busy=doing)

    @property
    def here(self) -> Row | None:
        """The row under the cursor."""
        index = self.query_one("#models-list", OptionList).highlighted
        return self._shown[index] if index is not None and index < len(self._shown) else None

    def _title(self) -> None:
        text = Content.assemble(
            ("flashmoe", "bold $primary"), "   Models", (f"   sorted by {self._sort}", "$foreground-muted")
        )
        self.query_one("#models-title", Static).update(text)

    def say(self, sentence: str, *, error: bool = False) -> None:
        """What happened, above the keys."""
        self.query_one("#models-state", Static).update(Content.styled(sentence, "$text-error" if error else ""))

    def finish(self, path: str) -> None:
        """Closes the screen: this model is to be loaded."""
        self.dismiss(path)

    def on_resize(self) -> None:
        """Lines follow the width."""
        self.query_one(DownloadPane).fold(roomy=self.size.height >= 28)
        self.call_after_refresh(self.fill)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters at once; asks the hub when the typing pauses."""
        self._filter, self._moved = event.value.strip(), False
        self.fill()
        if self._search_timer is not None:
            self._search_timer.stop()
        self._search_timer = self.set_timer(SEARCH_PAUSE_S, self._search)

    def _search(self) -> None:
        self.run_worker(self.finder.search_hub(self._filter), group="search", exclusive=True)

    def on_option_list_option_highlighted(self, _: OptionList.OptionHighlighted) -> None:
        """Describes what is under the cursor."""
        self._describe_soon()

    def on_option_list_option_selected(self, _: OptionList.OptionSelected) -> None:
        """A click chooses."""
        self.action_choose()

    # ---- details -----------------------------------------------------------------------------------------------------

    def _describe_soon(self) -> None:
        if self._details_timer is not None:
            self._details_timer.stop()
        self.describe()
        self._details_timer = self.set_timer(DETAILS_PAUSE_S, self._learn)

    def _learn(self) -> None:
        row = self.here
        if row is not None:
            self.run_worker(self.finder.learn(row), group="details", exclusive=True)

    def describe(self) -> None:
        """Draws what is known about the row under the cursor."""
        row, finder = self.here, self.finder
        body = self.query_one("#models-details Static", Static)
        if row is None or finder.machine is None:
            body.update(Content(""))
            return
        plan: Plan | None = finder.plans.get(row.key)
        note, repo = finder.learned.get(row.key, ""), finder.repos.get(row.repo)
        width = self.query_one("#models-details").scrollable_content_region.width
        if row.section == "here":
            body.update(details.local(row, plan, note, width))
        elif row.section == "catalogue":
            plan = plan or finder.estimates.get(row.key)
            body.update(details.catalogue(row, plan, repo, finder.machine, note, self._plan_key, width))
        else:
            body.update(details.hub(row, plan, repo, finder.machine, note, self._plan_key, width))

    # ---- actions -----------------------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """Moves the cursor of the list (or of the downloads), past the headings."""
        pane = self.query_one(DownloadPane)
        if pane.has_focus:
            pane.action_move(1 if step > 0 else -1)
            return
        options = self.query_one("#models-list", OptionList)
        rows = [i for i, row in enumerate(self._shown) if row is not None]
        if not rows:
            return
        self._moved = True
        now = options.highlighted if options.highlighted is not None else rows[0]
        place = rows.index(now) if now in rows else 0
        options.highlighted = rows[min(max(place + step, 0), len(rows) - 1)]
        if rows[0] == options.highlighted:
            options.scroll_home(animate=False)

    def action_choose(self) -> None:
        """Loads what is here; asks what to download of what isn't."""
        pane = self.query_one(DownloadPane)
        if pane.has_focus:
            pane.action_load()
            return
        typed = self.query_one(Input).value.strip()
        path = path_in(typed)
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                if path.is_file():
                    self.finish(str(path))
                    return
            self.say(f"{typed} is not a file.", error=True)
            return
        server = server_in(typed)
        if server is not None:
            self.finish(server)
            return
        row = self.here
        if row is not None:
            self.run_worker(self.flow.choose(row), group="choose", exclusive=True)

    def action_details(self, step: int) -> None:
        """Scrolls the details."""
        self.query_one("#models-details", VerticalScroll).scroll_relative(y=3 * step, animate=False)

    def action_sort(self) -> None:
        """The next order."""
        self._sort = SORTS[(SORTS.index(self._sort) + 1) % len(SORTS)]
        choose(sort=self._sort)
        self._title()
        self.fill()

    def action_refresh(self) -> None:
        """Looks again."""
        self.finder.forget()
        self.run_worker(self.finder.scan(), group="scan", exclusive=True)
        self._search()

    def action_plan(self) -> None:
        """Plans exactly."""
        row = self.here
        if row is not None:
            self.run_worker(self.finder.plan_exactly(row), group="plan", exclusive=True)

    def action_delete(self) -> None:
        """Asks, then deletes."""
        row = self.here
        if row is not None:
            self.run_worker(self.flow.delete(row), group="choose", exclusive=True)

    def action_verify(self) -> None:
        """Checks the files' hashes."""
        row = self.here
        if row is not None:
            self.run_worker(self.flow.verify(row), group="verify", exclusive=True)

    def action_downloads(self) -> None:
        """Focus to the downloads and back."""
        pane = self.query_one(DownloadPane)
        into = not pane.has_focus and bool(pane.views)
        (pane if into else self.query_one(Input)).focus()
        self.query_one(KeyBar).show(_DOWNLOAD_KEYS if into else _KEYS)
        if not pane.views:
            self.say("There are no downloads.")

    def action_back(self) -> None:
        """Out of the downloads, out of the filter, out of the screen."""
        field = self.query_one(Input)
        if self.query_one(DownloadPane).has_focus:
            self.action_downloads()
        elif field.value:
            field.value = ""
        else:
            self.dismiss(None)

    # ---- downloads ---------------------------------------------------------------------------------------------------

    def download_news(self, view: JobView) -> None:
        """A download moved; one that ended brings a new row."""
        pane = self.query_one(DownloadPane)
        before = next((v.state for v in pane.views if v.id == view.id), "")
        pane.show_one(view)
        pane.display = True
        if before != view.state:
            if view.state in ("done", "cancelled"):
                self._wanted_key = view.path if view.state == "done" else ""
                self.run_worker(self.finder.scan(), group="scan", exclusive=True)
            else:
                self.fill()
            if view.state in ("failed", "done", "paused"):
                self.say("")

    def on_download_pane_asked(self, event: DownloadPane.Asked) -> None:
        """Pause, resume, cancel (asks), take off the list, load."""
        self.run_worker(self.flow.steer(event.what, event.view), group="steer")

    def forget_download(self, id: str) -> None:
        """Takes a download off the pane."""
        pane = self.query_one(DownloadPane)
        pane.forget(id)
        if not pane.views:
            pane.display = False
            self.query_one(Input).focus()
            self.query_one(KeyBar).show(_KEYS)
