"""The last line: the keys in force for what can be done now, as many as fit."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.widget import Widget

from tui.key_table import KEYS
from tui.keymap import Keymap

_LABELS = {spec.id: spec.label for spec in KEYS}
_ACTIONS = {spec.id: spec.action for spec in KEYS}


class KeyBar(Widget):
    """Shows keys by binding id. Ids come in order of importance; the last one is kept whatever the width."""

    DEFAULT_CSS = """
    KeyBar { height: 1; padding: 0 1; color: $text-muted; background: $background; }
    """

    def __init__(self, keymap: Keymap, ids: list[str]) -> None:
        super().__init__(id="key-bar")
        self._keymap = keymap
        self._ids = ids

    def use(self, keymap: Keymap) -> None:
        """Other keys are in force."""
        self._keymap = keymap
        self.refresh()

    def show(self, ids: list[str]) -> None:
        """Replaces the keys that are shown."""
        if ids != self._ids:
            self._ids = ids
            self.refresh()

    def render(self) -> Content:
        """As many keys as fit, with the last id always among them."""
        return Content("  ").join([item for _, item in self._shown()])

    def _shown(self) -> list[tuple[str, Content]]:
        items = [(id_, self._item(id_)) for id_ in self._ids if self._keymap.display(id_)]
        if not items:
            return []
        *rest, last = items
        room = self.size.width - last[1].cell_length
        shown: list[tuple[str, Content]] = []
        for binding_id, item in rest:
            if item.cell_length + 2 > room:
                break
            shown.append((binding_id, item))
            room -= item.cell_length + 2
        return [*shown, last]

    async def on_click(self, event: events.Click) -> None:
        """A click does what the key does."""
        at = event.get_content_offset(self)
        start = 0
        for binding_id, item in self._shown():
            if at is not None and start <= at.x < start + item.cell_length:
                of_chat = binding_id.startswith("transcript.") and self.app.focused is not None
                await self.app.run_action(_ACTIONS[binding_id], self.app.focused if of_chat else self.screen)
                return
            start += item.cell_length + 2

    def _item(self, binding_id: str) -> Content:
        label = _LABELS.get(binding_id) or binding_id.partition(".")[2].replace("_", " ")
        return Content.assemble((self._keymap.display(binding_id), "bold $primary"), " ", label)
