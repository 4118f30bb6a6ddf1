"""F1: the keys in force, what the panes mean, and what to do when it is slow. Made from the keymap, so it can't lie."""

from __future__ import annotations

import textwrap

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from flashmoe import paths
from tui.chat.prompts import prompts_dir
from tui.key_table import KEYS, SCOPE_TITLES
from tui.keymap import Keymap
from tui.screens.chat.commands import COMMANDS

WIDE = 110
"""Columns of the terminal from which on each key's id is shown beside it."""
NARROW = 52

_PANES = (
    ("memory", "RAM that the engine owns (weights it keeps, context, buffers), apart from page cache, which the system "
     "takes back when it needs it. VRAM: what the GPU holds."),
    ("SSD", "What the engine reads now, against the most that this disk was measured to give. Per token: bytes that "
     "each new token had to fetch. Hit: the share of chosen experts that were in RAM already."),
    ("token", "Where the time of the last tokens went: waiting for reads, or computing. The sentence below it names "
     "what bounds the speed now and what would help."),
    ("experts", "One cell for each expert, layers downwards: how often it is used, and whether it is in RAM."),
)  # fmt: skip

_SLOW = (
    "Reading the prompt takes long: it is read once; later questions in the same chat only add what is new.",
    "Bound by the SSD: more memory for experts (--ram), a faster disk, or a smaller quantisation.",
    "Bound by the CPU: fewer layers on it (--gpu-layers), as many threads as physical cores (--threads).",
    "Memory pressure: a smaller context (--ctx) or budget (--ram), or close what else uses memory.",
)


class HelpScreen(ModalScreen[None]):
    """Scrolls; any of Esc, q, F1 closes it."""

    CSS = """
    HelpScreen { align: center middle; background: $background 60%; }
    HelpScreen > VerticalScroll {
        width: 112; max-width: 96%; height: 90%;
        border: round $primary; background: $surface; padding: 1 2; scrollbar-size-vertical: 1;
    }
    HelpScreen Static { height: auto; }
    """
    BINDINGS = [
        Binding("escape,q,f1", "dismiss(None)", "Close", priority=True),
        Binding("j,down", "scroll(1)", show=False),
        Binding("k,up", "scroll(-1)", show=False),
    ]

    def __init__(self, keymap: Keymap) -> None:
        super().__init__()
        self._keymap = keymap
        self._wide = True

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll() as box:
            box.border_title = "Help"
            box.border_subtitle = "Esc closes"
            yield Static(self.text(), markup=False)

    def on_resize(self) -> None:
        """Ids have a column of their own, or no place."""
        wide = self.size.width >= WIDE
        if wide != self._wide:
            self._wide = wide
            self.query_one(Static).update(self.text())

    def text(self) -> Content:
        """The whole help."""
        parts: list[Content | str | tuple[str, str]] = []
        for scope, title in SCOPE_TITLES.items():
            parts.append((f"{title}\n", "bold $text-primary"))
            for spec in KEYS:
                if spec.scope == scope and self._keymap.keys.get(spec.id):
                    keys = self._keymap.display_all(spec.id)
                    parts.append((f"  {keys:<14} ", "bold"))
                    if self._wide:
                        parts += [f"{spec.description:<63} ", (f"{spec.id}\n", "$foreground-muted")]
                    else:
                        parts.append(f"{textwrap.fill(spec.description, NARROW, subsequent_indent=' ' * 17)}\n")
            parts.append("\n")
        parts.append(("Commands, typed in the composer\n", "bold $text-primary"))
        for command in COMMANDS:
            shown = f"/{command.name} {command.argument}".rstrip()
            parts += [(f"  {shown:<14} ", "bold"), f"{command.description}\n"]
        where = paths.display(prompts_dir())
        parts.append(f"  {'/NAME':<14} NAME.txt in {where}; {{{{input}}}} is what you type behind it\n\n")
        parts.append(("What the panes show\n", "bold $text-primary"))
        for name, meaning in _PANES:
            width = 88 if self._wide else 58
            parts += [("  " + name.ljust(10), "bold"), f"{textwrap.fill(meaning, width, subsequent_indent=' ' * 12)}\n"]
        parts.append(("\nWhen it is slow\n", "bold $text-primary"))
        parts += [f"  · {sentence}\n" for sentence in _SLOW]
        parts.append(
            (
                "\nKeys are remapped by their ids in the config: ui: {keys: {chat.new: ctrl+b}}; {set: classic} is "
                "the set of earlier versions. "
                "`flashmoe-tui paths` says where it is."
                + ("" if self._wide else f" A terminal of {WIDE} columns shows the ids here."),
                "$foreground-muted",
            )
        )
        return Content.assemble(*parts)

    def action_scroll(self, direction: int) -> None:
        """A few lines."""
        self.query_one(VerticalScroll).scroll_relative(y=3 * direction, animate=False)
