"""F1: the keys in force, what the panes mean, and what to do when it is slow. Made from the keymap, so it can't lie."""

from __future__ import annotations

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
from tui.texts import hanging

WIDE = 110
"""Columns of the terminal from which on each key's id is shown beside it."""
_LABEL = 14
_WORDS = 63

_PANES = (
    ("memory", "RAM that the engine owns (weights, context, buffers), not counting page cache, which the system "
     "takes back when it needs it. VRAM: what the GPU holds."),
    ("SSD", "What the engine reads now, of the most that this disk gave when it was measured. Per token: bytes that "
     "each new token had to read. Hit: the share of chosen experts that were already in RAM."),
    ("token", "Where the time of the last tokens went: waiting for reads, or computing. The sentence below it names "
     "what bounds the speed now and what would help."),
    ("experts", "One cell for each expert, layers downwards: how often it is used, and whether it is in RAM."),
)  # fmt: skip

_SLOW = (
    "Reading the prompt takes long: it is read only once; later questions in the same chat read only what is new.",
    "Bound by the SSD: more memory for experts (--ram), a faster disk, or a smaller quantisation.",
    "Bound by the CPU: move more layers to the GPU (--gpu-layers N), use all physical cores (--threads N).",
    "Memory pressure: a smaller context (--ctx) or budget (--ram), or close other programs that use memory.",
)


class HelpScreen(ModalScreen[None]):
    """Scrolls; any of Esc, q, F1 closes it."""

    CSS = """
    HelpScreen { align: center middle; background: $background 60%; }
    HelpScreen > VerticalScroll {
        width: 112; max-width: 100%; height: 1fr; margin: 1 0 0 0;
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
        self._wide, self._room = True, 105

    def compose(self) -> ComposeResult:
        """One text."""
        self._measure()
        with VerticalScroll() as box:
            box.border_title = "Help"
            box.border_subtitle = "Esc closes"
            yield Static(self.text(), markup=False)

    def on_resize(self) -> None:
        """Lines are as long as the box; ids have a column of their own, or no place."""
        before = self._room
        self._measure()
        if self._room != before:
            self.query_one(Static).update(self.text())

    def _measure(self) -> None:
        width = self.app.size.width
        self._room, self._wide = min(112, width) - 7, width >= WIDE  # border, padding, scrollbar

    def text(self) -> Content:
        """The whole help."""
        parts: list[Content | str | tuple[str, str]] = []
        for scope, title in SCOPE_TITLES.items():
            parts.append((f"{title}\n", "bold $text-primary"))
            for spec in KEYS:
                if spec.scope == scope and self._keymap.keys.get(spec.id):
                    parts += self._entry(self._keymap.display_all(spec.id), spec.description, spec.id)
            parts.append("\n")
        parts.append(("Commands, typed in the composer\n", "bold $text-primary"))
        for command in COMMANDS:
            parts += self._entry(f"/{command.name} {command.argument}".rstrip(), command.description)
        where = paths.display(prompts_dir())
        parts += self._entry("/NAME", f"NAME.txt in {where}; {{{{input}}}} is what you type after it")
        parts.append(("\nWhat the panes show\n", "bold $text-primary"))
        for name, meaning in _PANES:
            parts += [(f"  {name:<10}", "bold"), f"{hanging(meaning, min(self._room, 100), 12)}\n"]
        parts.append(("\nWhen it is slow\n", "bold $text-primary"))
        parts += [f"  · {hanging(sentence, self._room, 4)}\n" for sentence in _SLOW]
        said = (
            "Remap keys by their ids in the configuration: ui: {keys: {chat.new: ctrl+b}}; {set: classic} brings back "
            "the keys of earlier versions. `flashmoe-tui paths` says where it is."
        )
        narrow = "" if self._wide else f" In a terminal of {WIDE} columns the ids are shown here."
        parts.append((f"\n{said}{narrow}", "$foreground-muted"))
        return Content.assemble(*parts)

    def _entry(self, label: str, words: str, binding_id: str = "") -> list[Content | str | tuple[str, str]]:
        """A key or a command, what it does, and where there is room the id; a long label has a line of its own."""
        gap = " " if len(label) <= _LABEL else "\n" + " " * (_LABEL + 3)
        parts: list[Content | str | tuple[str, str]] = [(f"  {label:<{_LABEL}}", "bold"), gap]
        if self._wide and binding_id:
            return [*parts, f"{words:<{_WORDS}} ", (f"{binding_id}\n", "$foreground-muted")]
        return [*parts, f"{hanging(words, self._room, _LABEL + 3)}\n"]

    def action_scroll(self, direction: int) -> None:
        """A few lines."""
        self.query_one(VerticalScroll).scroll_relative(y=3 * direction, animate=False)
