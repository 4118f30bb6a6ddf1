"""A plain list of the GGUF files on this machine, for a terminal without the model screen's needs."""

from __future__ import annotations

from pathlib import Path

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from flashmoe import paths
from flashmoe.text_safety import visible_line
from tui import figures

MOST_FILES = 2000


def local_models(folders: list[Path]) -> list[tuple[Path, int]]:
    """GGUF files (of split sets the first part) with their bytes, newest first."""
    found: dict[Path, tuple[float, int]] = {}
    for folder in folders:
        for path in sorted(folder.glob("**/*.gguf"))[:MOST_FILES] if folder.is_dir() else []:
            if "-of-" in path.name and "-00001-of-" not in path.name:
                continue
            try:
                info = path.stat()
            except OSError:
                continue
            found[path] = (info.st_mtime, info.st_size)
    return [(path, n) for path, (_, n) in sorted(found.items(), key=lambda item: -item[1][0])]


class PickerScreen(ModalScreen[str | None]):
    """Chooses a model's file; a path can be typed too. Returns the path, None on Esc."""

    CSS = """
    PickerScreen { align: center middle; background: $background 60%; }
    PickerScreen > Vertical {
        width: 90; max-width: 95%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 1 2;
    }
    PickerScreen Input { border: none; height: 1; padding: 0; background: $panel; margin: 0 0 1 0; }
    PickerScreen OptionList { height: auto; max-height: 18; border: none; background: $surface; padding: 0; }
    PickerScreen Static { height: auto; color: $text-muted; }
    """
    BINDINGS = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("down", "down", show=False, priority=True),
        Binding("up", "up", show=False, priority=True),
    ]

    def __init__(self, folders: list[Path]) -> None:
        super().__init__()
        self._folders = folders
        self._models: list[tuple[Path, int]] = []

    def compose(self) -> ComposeResult:
        """Filter, list, hint."""
        with Vertical() as box:
            box.border_title = "Models on this machine"
            box.border_subtitle = "Enter loads · Esc cancels"
            yield Input(placeholder="Type to filter, or the path of a GGUF file")
            yield OptionList()
            yield Static()

    def on_mount(self) -> None:
        """Looks for files in the background."""
        self.query_one(Input).focus()
        self._look()

    @work(thread=True)
    def _look(self) -> None:
        models = local_models(self._folders)
        guide = paths.guide_model()
        if guide.is_file():
            models.append((guide, guide.stat().st_size))
        self.app.call_from_thread(self._found, models)

    def _found(self, models: list[tuple[Path, int]]) -> None:
        self._models = models
        self._fill("")
        where = ", ".join(paths.display(folder) for folder in self._folders)
        text = f"Looked in {where}." if models else f"There are no GGUF files in {where}; type the path of one."
        self.query_one(Static).update(Content(text))

    def _fill(self, text: str) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        for index, (path, n) in enumerate(self._models):
            if text.lower() in path.name.lower():
                name = visible_line(path.stem, 56)
                options.add_option(
                    Option(
                        Content.assemble((f"{name:<58}", "bold"), (figures.size(n), "$foreground-muted")), id=str(index)
                    )
                )
        if options.option_count:
            options.highlighted = 0

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters."""
        self._fill(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A path that was typed, else what is under the cursor."""
        typed = Path(event.value).expanduser()
        if event.value and (typed.is_file() or "/" in event.value):
            self.dismiss(str(typed))
            return
        self._choose()

    def on_option_list_option_selected(self, _: OptionList.OptionSelected) -> None:
        """Chooses."""
        self._choose()

    def _choose(self) -> None:
        options = self.query_one(OptionList)
        if options.highlighted is not None and options.option_count:
            option = options.get_option_at_index(options.highlighted)
            self.dismiss(str(self._models[int(option.id or 0)][0]))

    def action_down(self) -> None:
        """The next file."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """The file before."""
        self.query_one(OptionList).action_cursor_up()
