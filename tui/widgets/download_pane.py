"""The downloads: a bar for each set, one for each of its parts, speed, time left, and what went wrong."""

from __future__ import annotations

import textwrap
from typing import ClassVar

from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from flashmoe import figures
from flashmoe.hub.downloads.views import ACTIVE, FileView, JobView
from flashmoe.text_safety import visible_line
from tui.keymap import bindings

_STATE_STYLE = {
    "done": "$text-success",
    "failed": "$text-error",
    "paused": "$text-warning",
    "cancelled": "$foreground-muted",
    "waiting": "$text-warning",
}
MAX_PARTS_SHOWN = 12


def _bar_width(width: int) -> int:
    return 20 if width >= 90 else 10


def _name_width(width: int) -> int:
    """The bars of a set and of its parts begin in one column."""
    return max(10, min(48, width - _bar_width(width) - (52 if width >= 90 else 36)))


class DownloadPane(Widget, can_focus=True):
    """Shows `JobView`s; the one under the cursor with its parts. Holds nothing but what it shows."""

    DEFAULT_CSS = """
    DownloadPane { height: auto; max-height: 12; padding: 0 1; overflow-y: auto; scrollbar-size-vertical: 1;
        text-wrap: nowrap; text-overflow: ellipsis;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = bindings("downloads")

    class Asked(Message):
        """The user wants something of a download: ``pause``, ``resume``, ``cancel``, ``dismiss`` or ``load``."""

        def __init__(self, what: str, view: JobView) -> None:
            super().__init__()
            self.what = what
            self.view = view

    def __init__(self) -> None:
        super().__init__(id="downloads")
        self._views: dict[str, JobView] = {}
        self._cursor = 0
        self.roomy = True
        """Whether the parts of an only download show without the focus too."""

    @property
    def views(self) -> list[JobView]:
        """What is shown, in order."""
        return list(self._views.values())

    def show_all(self, views: list[JobView]) -> None:
        """Replaces everything."""
        self._views = {view.id: view for view in views}
        self._moved()

    def show_one(self, view: JobView) -> None:
        """Something changed."""
        if self._views.get(view.id) == view:
            return
        new = view.id not in self._views or len(self._views[view.id].files) != len(view.files)
        resized = new or self._views[view.id].message != view.message
        self._views[view.id] = view
        if resized:
            self._moved()
        else:
            self.refresh()

    def forget(self, id: str) -> None:
        """Takes a download off the list."""
        self._views.pop(id, None)
        self._moved()

    def _moved(self) -> None:
        self._cursor = max(0, min(self._cursor, len(self._views) - 1))
        self.refresh(layout=True)

    @property
    def here(self) -> JobView | None:
        """The download under the cursor."""
        views = self.views
        return views[self._cursor] if views else None

    # ---- drawing -------------------------------------------------------------------------------------------------

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """As many lines as there are."""
        return max(1, len(self._lines(width)))

    def fold(self, *, roomy: bool) -> None:
        """Whether there is room for the parts all the time."""
        if roomy != self.roomy:
            self.roomy = roomy
            self._moved()

    def on_focus(self) -> None:
        """The parts of the marked download come into sight."""
        self._moved()

    def on_blur(self) -> None:
        """Its parts fold again where there are several downloads."""
        self._moved()

    def render(self) -> Content:
        """All lines."""
        return Content("\n").join(self._lines(self.size.width))

    def _lines(self, width: int) -> list[Content]:
        if not self._views:
            return [Content.styled("No downloads.", "$foreground-muted")]
        lines: list[Content] = []
        for index, view in enumerate(self.views):
            marked = index == self._cursor
            lines.append(self._job(view, width, marked=marked and self.has_focus))
            if view.message:
                pieces = textwrap.wrap(visible_line(view.message, 400), max(10, width - 2))
                lines += [Content.styled(f"  {piece}", self._style(view)) for piece in pieces[:3]]
            unfolded = (marked and self.has_focus) or (self.roomy and (len(self._views) == 1 or marked))
            if len(view.files) > 1 and unfolded and view.state != "done":
                shown = view.files[:MAX_PARTS_SHOWN]
                lines += [self._part(file, number, view, width) for number, file in enumerate(shown, 1)]
                if len(view.files) > len(shown):
                    lines.append(
                        Content.styled(f"    and {len(view.files) - len(shown)} more parts", "$foreground-muted")
                    )
        return lines

    @staticmethod
    def _style(view: JobView) -> str:
        return _STATE_STYLE.get(view.state, "$foreground-muted")

    def _job(self, view: JobView, width: int, *, marked: bool) -> Content:
        right = self._figures(view, width)
        room = _name_width(width)
        name = visible_line(f"{view.repo.split('/')[-1].removesuffix('-GGUF')}:{view.label}", room)
        style = "bold reverse" if marked else "bold"
        share = view.verified / view.size if view.state == "verifying" and view.size else view.share
        percent = f"{int(share * 100):3d} %"
        bar = figures.bar(share, _bar_width(width))
        colour = self._style(view) if view.state in _STATE_STYLE else "$primary"
        mark = "▸ " if marked else "  "
        return Content.assemble(
            (mark, "$primary"), (f"{name:<{room}}", style), " ", (bar, colour), " ", (percent, "bold"), "  ", right
        )

    def _figures(self, view: JobView, width: int) -> Content:
        sizes = f"{figures.size(view.done)} of {figures.size(view.size)}"
        if view.state == "done":
            return Content.styled(f"{figures.size(view.size)}, verified", "$text-success")
        if view.state == "verifying":
            return Content.styled("verifying sha256", "$foreground-muted")
        if view.state in ACTIVE and view.bytes_s:
            speed = figures.rate(view.bytes_s)
            left = f"{figures.roughly(view.eta_s)} left" if view.eta_s is not None else ""
            text = f"{sizes}  {speed}  {left}" if width >= 90 else f"{speed}  {left}"
            return Content.styled(text, "$foreground-muted")
        words = {"failed": "failed", "paused": "paused", "queued": "queued", "cancelled": "deleted"}
        word = words.get(view.state, view.state)
        return Content.assemble((f"{sizes}  " if width >= 90 else "", "$foreground-muted"), (word, self._style(view)))

    def _part(self, file: FileView, number: int, view: JobView, width: int) -> Content:
        share = file.done / file.size if file.size else 1.0
        words = {"done": "verified", "verifying": "verifying", "running": "", "queued": "", "failed": "failed"}
        room = _name_width(width)
        label = visible_line(f"    part {number} of {len(view.files)}", room)
        checked = f"{figures.size(file.done)} of {figures.size(file.size)}" if width >= 70 else ""
        colour = "$text-success" if file.state == "done" else "$secondary"
        return Content.assemble(
            (f"  {label:<{room}} ", "$foreground-muted"),
            (figures.bar(share, _bar_width(width)), colour),
            (f" {int(share * 100):3d} %  {checked}  {words[file.state]}".rstrip(), "$foreground-muted"),
        )

    # ---- actions -------------------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """Moves the cursor."""
        self._cursor += step
        self._moved()

    def action_pause_resume(self) -> None:
        """Pauses what runs, resumes what doesn't."""
        view = self.here
        if view is not None:
            going = view.state in ACTIVE or view.state == "queued"
            if going or view.state in ("paused", "failed"):
                self.post_message(self.Asked("pause" if going else "resume", view))

    def action_cancel(self) -> None:
        """Stops for good and deletes what came; a finished one is taken off the list."""
        view = self.here
        if view is not None:
            self.post_message(self.Asked("dismiss" if view.state in ("done", "cancelled") else "cancel", view))

    def action_load(self) -> None:
        """Loads what is finished; else pauses or resumes."""
        view = self.here
        if view is not None and view.state == "done":
            self.post_message(self.Asked("load", view))
        else:
            self.action_pause_resume()
