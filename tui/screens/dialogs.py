"""Small questions over the screen: a choice, a line of text. Keyboard first; Esc is always the harmless answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from flashmoe.text_safety import visible
from tui.texts import hanging
from tui.widgets.fields import LineField


class Choice(NamedTuple):
    """One answer: what is returned, what it says, and a muted explanation."""

    id: str
    label: str
    detail: str = ""


class ChoiceDialog(ModalScreen[str | None]):
    """Asks for one of several answers; None on Esc."""

    CSS = """
    ChoiceDialog { align: center middle; background: $background 60%; }
    ChoiceDialog > Vertical {
        width: 64; max-width: 95%; height: auto; max-height: 90%;
        border: round $primary; background: $surface; padding: 1 2;
    }
    ChoiceDialog Static { height: auto; margin: 0 0 1 0; }
    ChoiceDialog OptionList { height: auto; max-height: 14; border: none; background: $surface; padding: 0; }
    """
    BINDINGS = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
    ]

    def __init__(self, title: str, text: str, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._choices = choices

    def compose(self) -> ComposeResult:
        """Title, sentence, choices."""
        with Vertical() as box:
            box.border_title = Content(visible(self._title))
            yield Static(Content(visible(self._text)), markup=False)
            room = min(64, self.app.size.width * 95 // 100) - 7  # border, padding, scrollbar
            yield OptionList(*(Option(_label(choice, room), id=choice.id) for choice in self._choices))

    def on_mount(self) -> None:
        """The first choice is under the cursor."""
        self.query_one(OptionList).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answers."""
        self.dismiss(event.option.id)

    def action_down(self) -> None:
        """The next choice."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """The choice before."""
        self.query_one(OptionList).action_cursor_up()


def _label(choice: Choice, width: int) -> Content:
    label = Content.styled(visible(choice.label), "bold")
    if not choice.detail:
        return label
    return Content.assemble(label, "\n", ("  " + hanging(visible(choice.detail), width, 2), "$foreground-muted"))


class PathSuggester(Suggester):
    """The first file or folder whose path begins as typed; hidden ones only after a dot."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """The whole path, or None; the folder is read in a thread, since it may be far away."""
        if not value or value.endswith(("/..", "/.")):
            return None
        return await asyncio.to_thread(_complete, value)


def _complete(value: str) -> str | None:
    head, _, start = value.rpartition("/")
    folder = Path(f"{head}/" if "/" in value else ".").expanduser()
    best: str | None = None
    with contextlib.suppress(OSError, RuntimeError, ValueError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, 10_000):
            name = entry.name
            if name.startswith(start) and name.isprintable() and (start.startswith(".") or not name.startswith(".")):
                shown = name + "/" if entry.is_dir() else name
                if best is None or shown < best:
                    best = shown
    if best is None or best == start:
        return None
    return f"{head}/{best}" if "/" in value else best


class TextDialog(ModalScreen[str | None]):
    """Asks for a line of text; None on Esc."""

    CSS = """
    TextDialog { align: center middle; background: $background 60%; }
    TextDialog > Vertical {
        width: 72; max-width: 95%; height: auto;
        border: round $primary; background: $surface; padding: 1 2;
    }
    TextDialog Static { height: auto; margin: 0 0 1 0; }
    TextDialog Input { border: none; height: 1; padding: 0; background: $panel; }
    TextDialog .error { color: $text-error; margin: 1 0 0 0; display: none; }
    """
    BINDINGS = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("tab", "complete", show=False, priority=True),
    ]

    def __init__(self, title: str, text: str, value: str = "", placeholder: str = "", *, paths: bool = False) -> None:
        """`paths`: names of files are completed as they are typed."""
        super().__init__()
        self._paths = paths
        self._title = title
        self._text = text
        self._value = value
        self._placeholder = placeholder

    def compose(self) -> ComposeResult:
        """Title, sentence, input."""
        with Vertical() as box:
            box.border_title = Content(visible(self._title))
            box.border_subtitle = f"{'Tab completes · ' if self._paths else ''}Enter accepts · Esc cancels"
            if self._text:
                yield Static(Content(visible(self._text)), markup=False)
            yield LineField(
                self._value,
                placeholder=self._placeholder,
                select_on_focus=False,
                suggester=PathSuggester() if self._paths else None,
            )

    def on_mount(self) -> None:
        """Ready to type."""
        field = self.query_one(Input)
        field.cursor_blink = False
        field.focus()

    async def action_complete(self) -> None:
        """Takes the rest of a file's name, as a shell does."""
        field = self.query_one(Input)
        found = await PathSuggester().get_suggestion(field.value) if self._paths else None
        if found is not None:
            field.value = found
            field.cursor_position = len(found)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answers."""
        self.dismiss(event.value)
