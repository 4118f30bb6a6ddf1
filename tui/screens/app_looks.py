"""The app's themes: which one to begin with, choosing another, keeping the choice."""

from __future__ import annotations

import time
from typing import Any

from textual.app import App
from textual.notifications import Notify
from textual.theme import Theme

from flashmoe import paths
from flashmoe.config.chosen import choose, read_chosen
from flashmoe.config.schema import LoadedConfig
from tui import themes
from tui.terminal import facts
from tui.terminal.colours import use_terminal

TOGETHER_S = 2.0
"""What is told within this time of the last is told with it."""


NOT_KEPT = "It lasts until you quit: the state folder can't be written, so the choice isn't remembered."


class AppLooks(App[int]):
    """An app with the themes of the project and of the user."""

    loaded: LoadedConfig

    def __init__(self, **options: Any) -> None:
        folders = (paths.builtin_themes_dir(), paths.user_themes_dir())
        self.theme_set = themes.load_themes(*folders, colours=facts.colours())  # Textual asks for one in its __init__
        super().__init__(**options)
        self._told = ("", 0.0)
        use_terminal(self, self.loaded.config.ui.characters)
        for theme in self.theme_set.themes.as_written.values():
            self.register_theme(theme)

    def get_theme(self, theme_name: str) -> Theme | None:
        """The theme as it can be read here; the registered ones are as their files say."""
        return self.theme_set.themes.get(theme_name) or super().get_theme(theme_name)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """For themes that weren't fitted: Textual's own, and those of the terminal's colours."""
        return {**super().get_theme_variable_defaults(), "selected": "ansi_default"}

    @property
    def theme_names(self) -> list[str]:
        """All that can be chosen."""
        return sorted(self.theme_set.themes)

    def first_theme(self, wanted: str | None) -> str:
        """The theme to begin with: `wanted` by an option, else configured, else chosen before, else one that fits."""
        known = self.theme_set.themes
        configured = self.loaded.config.ui.theme
        name = wanted or (configured if configured != "auto" else None)
        if name is not None and name not in known:
            listed = ", ".join(self.theme_names)
            self.theme_set.problems.append(f"There is no theme “{name}”; choose one of {listed}.")
            name = None
        elif name is None and self._lasts():
            chosen = read_chosen().theme
            name = chosen if chosen in known else None
        if name is None and facts.colours() == "16" and "terminal" in known:
            name = "terminal"
        return name or (themes.DEFAULT_THEME if themes.DEFAULT_THEME in known else next(iter(known), "textual-dark"))

    def _lasts(self) -> bool:
        """Whether a chosen theme is there again at the next start: what the configuration names wins."""
        return "ui.theme" not in self.loaded.lines

    def notify(self, message: str, **options: Any) -> None:
        """One toast at a time, at the top, where nobody types; what comes together stands together."""
        now = time.monotonic()
        before, at = self._told
        if now - at < TOGETHER_S and before and message not in before.split("\n"):
            message = f"{before}\n{message}"
        self._told = (message, now)
        super().notify(message, **options)

    def _on_notify(self, _: Notify) -> None:
        self._notifications.clear()  # Textual's own handler, which it calls next, adds the new one

    def choose_theme(self, name: str) -> bool:
        """Takes a theme and keeps the choice; False where there is none of that name."""
        if name not in self.theme_set.themes:
            return False
        self.theme = name
        if not choose(theme=name):
            self.notify(NOT_KEPT, severity="warning", markup=False)
        return True

    def action_themes(self) -> None:
        """Chooses a theme with a live preview."""
        from tui.screens.theme_picker import ThemePicker

        def chosen(name: str | None) -> None:
            if name is not None:
                self.choose_theme(name)

        self.push_screen(ThemePicker(self.theme_set, self.theme, lasts=self._lasts()), chosen)
