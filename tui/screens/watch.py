"""The app that `top` and `replay` share: the monitor's panes and the expert map over a feed, without a chat."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.screen import Screen

from flashmoe import figures, paths
from flashmoe.config.load import load_config
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.text_safety import visible_line
from tui import keymap as keys
from tui import themes
from tui.screens.experts import ExpertMapView, ExpertsScreen
from tui.terminal import facts as terminal
from tui.terminal.colours import use_terminal
from tui.widgets.key_bar import KeyBar
from tui.widgets.monitor.column import MonitorColumn
from tui.widgets.monitor.lines import MUTED, Lines, line, spread

MAP_FROM = 96
"""Columns from which the expert map stands beside the panes."""


class WatchTitle(Lines):
    """One line: what is watched, the model, the speed."""

    DEFAULT_CSS = """
    WatchTitle { height: 1; padding: 0 1; background: $panel; color: $foreground; }
    """

    def __init__(self, name: str, feed: MonitorFeed) -> None:
        super().__init__(id="watch-title")
        self._name = name
        self.feed = feed

    def make_lines(self, width: int, height: int) -> list[Content]:
        """``flashmoe top   Qwen3-30B · Q4_K_M · stream   4.8 tok/s``."""
        model, frame = self.feed.model, self.feed.frame
        parts: list[tuple[str, str] | str] = [("flashmoe ", "bold $primary"), (f"{self._name}   ", "bold")]
        if model is not None:
            parts.append((visible_line(model.name, 40), "bold"))
            how = " · ".join(visible_line(part, 16) for part in (model.quant, model.backend) if part)
            parts.append((f" · {how}", MUTED))
        else:
            parts.append(("no model", MUTED))
        if self.feed.note:
            parts.append((f"   {self.feed.note}", MUTED))
        known = model is not None and frame is not None and frame.tok_s is not None
        speed = f"{figures.speed(frame.tok_s)} tok/s" if known and frame is not None else ""
        return [spread(line(*parts), line((speed, "bold")), width)]


class WatchScreen(Screen[None]):
    """Title, panes, map, keys."""

    DEFAULT_CSS = """
    WatchScreen { layout: vertical; background: $background; }
    WatchScreen #watch-body { height: 1fr; }
    WatchScreen MonitorColumn { width: 44; }
    WatchScreen ExpertMapView { width: 1fr; }
    WatchScreen.-narrow MonitorColumn { width: 1fr; }
    WatchScreen.-narrow ExpertMapView { display: none; }
    """

    def __init__(self, owner: WatchApp) -> None:
        super().__init__()
        self._owner = owner

    def compose(self) -> ComposeResult:
        """All parts; the narrow layout hides the map and gives the panes their small one."""
        feed = self._owner.feed
        yield WatchTitle(self._owner.what, feed)
        with Horizontal(id="watch-body"):
            yield MonitorColumn(feed)
            yield ExpertMapView(feed, spare_rows=False)  # the panes beside it have the curve
        yield from self._owner.extra_lines()
        yield KeyBar(self._owner.keymap, self._owner.key_ids)

    def on_resize(self) -> None:
        """One column or two."""
        narrow = self.size.width < MAP_FROM
        self.set_class(narrow, "-narrow")
        self.query_one(MonitorColumn).with_map = narrow
        self.look()

    def on_screen_resume(self) -> None:
        """What came while the map covered the panes."""
        self.look()

    def look(self) -> None:
        """Every part looks at the feed again."""
        for part in self.query(Lines):
            if part.display:
                part.update_view()


class WatchApp(App[int]):
    """Panes over a feed. Subclasses fill it and call `look`."""

    TITLE = "flashmoe-tui"
    what = "watch"
    key_ids: ClassVar[list[str]] = ["watch.span", "watch.experts", "watch.quit"]
    BINDINGS = keys.bindings("watch")
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, *, theme: str | None = None, **extra: Any) -> None:
        super().__init__(**extra)
        self.feed = MonitorFeed()
        self.animation_level = "none"
        config = load_config().config
        self.calm = {"on": True, "off": False}.get(config.ui.calm, terminal.over_ssh())
        self.keymap = keys.resolve(config.ui.keys)
        self.set_keymap(self.keymap.overrides)
        found = themes.load_themes(paths.builtin_themes_dir(), paths.user_themes_dir(), colours=terminal.colours())
        use_terminal(self, config.ui.characters)
        wanted = theme or config.ui.theme
        if wanted == "auto" or wanted not in found.themes:
            wanted = "terminal" if terminal.colours() == "16" else themes.DEFAULT_THEME
        if wanted in found.themes:
            self.register_theme(found.themes[wanted])
        self.theme = wanted if wanted in found.themes else "textual-dark"
        self._watch_screen = WatchScreen(self)

    def get_default_screen(self) -> Screen[Any]:
        """The panes."""
        return self._watch_screen

    def extra_lines(self) -> list[Lines]:
        """Lines between the panes and the keys."""
        return []

    def look(self) -> None:
        """Shows what the feed holds now, unless another screen covers it."""
        if self._watch_screen.is_attached and self.screen is self._watch_screen:
            self._watch_screen.look()

    def action_span(self) -> None:
        """The curves cover the next stretch of time."""
        self.feed.cycle_span()
        self.look()

    def action_experts(self) -> None:
        """The map on the whole screen."""
        if isinstance(self.screen, ExpertsScreen):
            self.screen.dismiss(None)
        else:
            self.push_screen(ExpertsScreen(self.feed))
