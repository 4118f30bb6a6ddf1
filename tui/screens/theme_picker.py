"""Themes with a live preview: moving the cursor shows one, Enter keeps it, Esc goes back."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from flashmoe import paths
from tui.texts import hanging
from tui.themes import ThemeSet


class ThemePicker(ModalScreen[str | None]):
    """The themes by name with their descriptions; answers with the one that is kept, None on Esc."""

    CSS = """
    ThemePicker { align: right middle; background: transparent; }
    ThemePicker > Vertical {
        width: 58; max-width: 96%; height: auto; max-height: 90%; margin: 0 2;
        border: round $primary; background: $surface; padding: 1 2;
    }
    ThemePicker OptionList { height: auto; max-height: 20; border: none; background: $surface; padding: 0; }
    ThemePicker Static { height: auto; color: $text-muted; margin: 1 0 0 0; }
    """
    BINDINGS = [
        Binding("escape", "back", "Back"),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
    ]

    def __init__(self, theme_set: ThemeSet, current: str, *, lasts: bool) -> None:
        """`lasts`: what is chosen is there again at the next start; else the configuration names another."""
        super().__init__()
        self._lasts = lasts
        self._set = theme_set
        self._before = current

    def compose(self) -> ComposeResult:
        """The list, and how to make the choice last."""
        with Vertical() as box:
            box.border_title = "Theme"
            room = min(58, self.app.size.width - 4) - 10  # border, padding, of the options too, scrollbar
            box.border_subtitle = "Enter selects · Esc cancels"
            yield OptionList(
                *(
                    Option(
                        Content.assemble(
                            (name.ljust(11), "bold"),
                            (hanging(self._set.descriptions.get(name, ""), room, 11), "$foreground-muted"),
                        ),
                        id=name,
                    )
                    for name in self._names
                )
            )
            where = paths.display(paths.config_file())
            lasts = "Your choice is remembered." if self._lasts else f"For this session only: {where} sets ui.theme."
            yield Static(Content(lasts), markup=False)

    @property
    def _names(self) -> list[str]:
        return sorted(self._set.themes, key=lambda name: (not self._set.themes.as_written[name].dark, name))

    def on_mount(self) -> None:
        """The cursor stands on the theme in force."""
        options = self.query_one(OptionList)
        if self._before in self._names:
            options.highlighted = self._names.index(self._before)
        options.focus()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Shows the theme."""
        if event.option.id:
            self.app.theme = event.option.id

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Keeps it."""
        self.dismiss(event.option.id)

    def action_back(self) -> None:
        """As it was."""
        self.app.theme = self._before
        self.dismiss(None)

    def action_down(self) -> None:
        """The next theme."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """The theme before."""
        self.query_one(OptionList).action_cursor_up()
