"""F3: what belongs to this chat: system prompt, preset, sampling, thinking. Wrong values are named, not dropped."""

from __future__ import annotations

from typing import Any

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from backends.interface import Sampling
from flashmoe.history import ChatSettings
from flashmoe.presets import AUTO, Presets
from tui.texts import hanging
from tui.widgets.fields import LineField, TextField

_FIELDS: tuple[tuple[str, str, float, float, str], ...] = (
    ("temperature", "temperature", 0.0, 10.0, "0 always picks the top token"),
    ("top_p", "top-p", 0.0, 1.0, "sum of the probabilities to keep"),
    ("top_k", "top-k", 0, 1_000_000, "tokens to choose from; 0 is all"),
    ("min_p", "min-p", 0.0, 1.0, "relative to the top token"),
    ("repeat_penalty", "repeat penalty", 0.01, 10.0, "above 1 discourages repetition"),
    ("seed", "seed", 0, 2**32 - 1, "empty picks a random one"),
    ("max_tokens", "longest answer", 1, 1 << 24, "in tokens; empty sets no limit"),
)
_OPTIONAL = frozenset({"seed", "max_tokens"})
_WHOLE = frozenset({"top_k", "seed", "max_tokens"})
_THINKING = (("auto", None), ("on", True), ("off", False))


class SettingsScreen(ModalScreen[ChatSettings | None]):
    """Returns the changed settings, None on Esc."""

    CSS = """
    SettingsScreen { align: center middle; background: $background 60%; }
    SettingsScreen > VerticalScroll {
        width: 84; max-width: 100%; height: auto; max-height: 94%;
        border: round $primary; background: $surface; padding: 1 2; scrollbar-size-vertical: 1;
    }
    SettingsScreen .head { text-style: bold; color: $text-primary; height: 1; }
    SettingsScreen .row { height: 1; }
    SettingsScreen .row > .name { width: 16; color: $foreground; }
    SettingsScreen .row > .what { width: 1fr; color: $text-muted; padding: 0 0 0 2; }
    SettingsScreen.-slim .row > .what { display: none; }
    SettingsScreen Input { border: none; height: 1; width: 14; padding: 0 1; background: $panel; }
    SettingsScreen TextArea { height: auto; min-height: 3; max-height: 8; padding: 0 1; }
    SettingsScreen OptionList { height: auto; max-height: 6; padding: 0; }
    SettingsScreen TextArea, SettingsScreen OptionList { border: none; background: $panel; margin: 0 0 1 0; }
    SettingsScreen #thinking { height: 3; }
    SettingsScreen #problem { color: $text-error; height: auto; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-slim"), (76, "-wide")]  # hints have no place beside the fields, or they have
    BINDINGS = [
        Binding("escape", "dismiss(None)", "Cancel", priority=True),
        Binding("ctrl+s,f3", "keep", "Keep", priority=True),
    ]

    def __init__(self, settings: ChatSettings, presets: Presets, model: str, *, can_think: bool) -> None:
        super().__init__()
        self._settings = settings
        self._presets = presets
        self._model = model
        self._can_think = can_think
        self._names = [AUTO, *presets.presets]
        self._filling = False
        self._preset = settings.preset if settings.preset in self._names else AUTO

    def compose(self) -> ComposeResult:
        """System prompt, preset, sampling, thinking."""
        with VerticalScroll(can_focus=False) as box:
            box.border_title = "Settings of this chat"
            box.border_subtitle = "^S saves · Esc cancels · Tab moves"
            yield Static("System prompt", classes="head")
            editor = TextField(self._settings.system_prompt, show_line_numbers=False, tab_behavior="focus", id="system")
            editor.cursor_blink = False
            yield editor
            yield Static("Preset", classes="head")
            yield OptionList(*(Option(self._label(name), id=name) for name in self._names), id="presets")
            yield Static("Sampling", classes="head")
            for field, name, _, _, what in _FIELDS:
                with Horizontal(classes="row"):
                    yield Static(name, classes="name")
                    yield LineField(id=f"field-{field}")
                    yield Static(what, classes="what")
            yield Static("", classes="row")
            if self._can_think:
                yield Static("Thinking", classes="head")
                yield OptionList(
                    *(Option(name if name != "auto" else "the model's default", id=name) for name, _ in _THINKING),
                    id="thinking",
                )
            yield Static("", id="problem", markup=False)

    def on_mount(self) -> None:
        """Shows what is in force."""
        self._fill(self._settings.sampling or self._presets.pick(self._preset, self._model).sampling)
        self.query_one("#presets", OptionList).highlighted = self._names.index(self._preset)
        if self._can_think:
            index = next(i for i, (_, value) in enumerate(_THINKING) if value == self._settings.thinking)
            self.query_one("#thinking", OptionList).highlighted = index
        for field in self.query(Input):
            field.cursor_blink = False
        self.query_one("#system").focus(scroll_visible=False)
        box = self.query_one(VerticalScroll)
        self.call_after_refresh(box.scroll_home, animate=False)  # the first heading stays in sight

    def _label(self, name: str) -> Content:
        preset = self._presets.pick(name, self._model)
        detail = f"recommended for this model: {preset.name}" if name == AUTO else preset.description
        room = min(84, self.app.size.width) - 8  # border, padding, two scrollbars
        return Content.assemble((name.ljust(18), "bold"), (hanging(detail, room, 18), "$foreground-muted"))

    def _fill(self, sampling: Sampling) -> None:
        self._filling = True
        for field, *_ in _FIELDS:
            value = getattr(sampling, field)
            self.query_one(f"#field-{field}", Input).value = (
                "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            )
        self._filling = False

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """A preset under the cursor fills the fields."""
        if event.option_list.id == "presets" and event.option_list.has_focus and event.option.id:
            self._preset = event.option.id
            self._fill(self._presets.pick(self._preset, self._model).sampling)

    def action_keep(self) -> None:
        """Checks and returns."""
        values: dict[str, Any] = {}
        for field, name, low, high, _ in _FIELDS:
            text = self.query_one(f"#field-{field}", Input).value.strip()
            if not text and field in _OPTIONAL:
                values[field] = None
                continue
            try:
                value = int(text) if field in _WHOLE else float(text)
            except ValueError:
                return self._wrong(field, f"{name}: '{text}' is not a {'whole ' if field in _WHOLE else ''}number.")
            if not low <= value <= high:
                return self._wrong(field, f"{name}: {text} is outside {low:g} to {high:g}.")
            values[field] = value
        base = self._presets.pick(self._preset, self._model).sampling
        sampling = msgspec.structs.replace(base, **values)
        thinking = self._settings.thinking
        if self._can_think:
            highlighted = self.query_one("#thinking", OptionList).highlighted
            thinking = _THINKING[highlighted or 0][1]
        self.dismiss(
            msgspec.structs.replace(
                self._settings,
                system_prompt=self.query_one("#system", TextArea).text.strip(),
                preset=self._preset,
                sampling=sampling if sampling != base else None,
                thinking=thinking,
            )
        )
        return None

    def _wrong(self, field: str, sentence: str) -> None:
        self.query_one("#problem", Static).update(Content(f"✗ {sentence}"))
        self.query_one(f"#field-{field}").focus()
